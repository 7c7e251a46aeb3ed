"""The one door to Ray: a cluster that is running, and a `Captioner` on each of its nodes."""

from __future__ import annotations

import logging
import re
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from llava_ollama.batch.captioner import Captioner, Greeting
from llava_ollama.batch.relay import Note
from llava_ollama.batch.work import Job
from llava_ollama.errors import DaemonUnreachable, EngineUnavailable, LlavaOllamaError, UsageProblem

_CONNECT = 5.0
"""Seconds for the cluster's port to open; Ray itself tries for a minute and a half."""
_CALLS = 4
"""Calls that an actor takes at once: its stream of notes lasts as long as the run."""


@dataclass(frozen=True)
class Place:
    """A node that is there; `name` is its address, unless it was given another."""

    id: str
    name: str
    gpus: float


@dataclass(frozen=True)
class Ended:
    """A member is through: as it was told to, of an error of ours, or because it died."""

    error: LlavaOllamaError | None = None
    died: str = ""
    """What its process died of."""
    is_lost: bool = False
    """Whether all that is known is that it cannot be reached."""


@dataclass
class Member:
    """An actor on a node."""

    place: Place
    actor: Any
    waited: Any
    """What Ray is asked for: its greeting, nothing until it begins, then its stream of notes."""
    begun: bool = False


Word = Greeting | list[Note] | Ended


class Crew:
    """The members on a cluster; `close` ends them and leaves the cluster as it was."""

    def __init__(self, address: str, keywords: Mapping[str, Any]) -> None:
        """Connect; each member will be a `Captioner` made with `keywords`.

        Raises:
            EngineUnavailable: the extra `ray` is not installed.
            UsageProblem: `address` is none.
            DaemonUnreachable: no cluster is there, or this machine is not one of its nodes.
        """
        self._ray = _library()
        self._keywords = dict(keywords)
        self._members: list[Member] = []
        self._connected = not self._ray.is_initialized()
        if self._connected:
            _connect(self._ray, address)
        self._class = self._ray.remote(Captioner)

    def places(self) -> list[Place]:
        """Return the nodes that are alive and take work: a head is often started without CPUs."""
        found = [
            Place(
                node["NodeID"],
                node.get("NodeName") or node["NodeManagerAddress"],
                node["Resources"].get("GPU", 0.0),
            )
            for node in self._ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        ]
        return sorted(found, key=lambda place: place.name)

    def hire(self, place: Place) -> Member:
        """Start a member on a node; its first word is its greeting."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Ray hides the graphics cards from whoever asks for none; Ollama has them by itself.
        gpus = 1 if self._keywords.get("embedded") and place.gpus >= 1 else 0
        actor = self._class.options(
            num_cpus=0,
            num_gpus=gpus,
            max_concurrency=_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.id, soft=False),
        ).remote(**self._keywords)
        member = Member(place, actor, actor.open.remote())
        self._members.append(member)
        return member

    def give(self, member: Member, jobs: Sequence[Job]) -> None:
        """Give a member work; with the first it begins."""
        if not member.begun:
            member.begun = True
            member.waited = member.actor.notes.options(num_returns="streaming").remote()
        member.actor.give.remote(jobs)

    def stop(self, member: Member) -> None:
        """Have a member answer what is under way and give the rest back."""
        member.actor.stop.remote()

    def dismiss(self, member: Member) -> None:
        """End a member's process."""
        if member in self._members:
            self._members.remove(member)
            self._ray.kill(member.actor)

    def hear(self, seconds: float) -> list[tuple[Member, Word]]:
        """Return a word of each member that has something to say; wait for the first so long."""
        heard = [member for member in self._members if member.waited is not None]
        references = [member.waited for member in heard]
        if not references:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(references, num_returns=1, timeout=seconds)
        those = {id(reference) for reference in ready}
        return [(member, self._word(member)) for member in heard if id(member.waited) in those]

    def _word(self, member: Member) -> Word:
        errors = self._ray.exceptions
        try:
            if not member.begun:
                greeting: Greeting = self._ray.get(member.waited)
                member.waited = None
                return greeting
            notes: list[Note] = self._ray.get(next(member.waited))
        except StopIteration:
            return Ended()
        except errors.RayTaskError as exc:
            if isinstance(exc.cause, LlavaOllamaError):
                return Ended(exc.cause)
            raise  # a fault of ours; its text has the node's traceback
        except errors.ActorDiedError as exc:
            return Ended(died=_why(exc), is_lost="node has died" in str(exc))
        except errors.RayError:
            return Ended(is_lost=True)
        return notes

    def close(self) -> None:
        """End all members, and the connection if it was made here."""
        for member in list(self._members):
            self.dismiss(member)
        if self._connected:
            self._ray.shutdown()


def _library() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError as exc:
        raise EngineUnavailable(
            "running on a cluster needs the package `ray`", hint="pip install 'llava-ollama[ray]'"
        ) from exc
    library: ModuleType = ray
    return library


def _connect(ray: ModuleType, address: str) -> None:
    if "://" in address:
        raise UsageProblem(
            f"`{address}` is not the address of a cluster as its own nodes see it",
            hint="Run this on a node of it, and write `auto`, or `host:port` of its head",
        )
    if address != "auto":
        _check_port(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as exc:
        raise DaemonUnreachable(
            f"the Ray cluster at `{address}` does not let this process in: {_last_line(exc)}",
            hint="Run this on one of its nodes, with the Python and the Ray that they have",
        ) from exc
    # Ray makes SIGTERM exit from wherever the main thread is, and prints a node's death to
    # standard output, which is for data; there is no public switch for the second.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    ray._private.worker._worker_logs_enabled = False  # noqa: SLF001 - see above


def _check_port(address: str) -> None:
    found = re.fullmatch(r"(?:\[(.+)\]|([^\[\]]+)):(\d{1,5})", address)
    if found is None:
        raise UsageProblem(
            f"`{address}` is not the address of a Ray cluster",
            hint="Write `auto`, or `host:port` of its head, as `ray start` prints it",
        )
    try:
        socket.create_connection((found[1] or found[2], int(found[3])), _CONNECT).close()
    except (OSError, OverflowError) as exc:
        raise DaemonUnreachable(
            f"no Ray cluster answers at `{address}`",
            hint="Start one: `ray start --head` here, and `ray start --address=…` elsewhere",
        ) from exc


def _why(error: BaseException) -> str:
    """Return why a member died; of a process that was killed Ray tells only what it may have been.

    One that did not begin has a traceback, whose last line says it.
    """
    return "it was killed" if "worker process has died" in str(error) else _last_line(error)


def _last_line(error: BaseException) -> str:
    """Return what an error of Ray's comes to; its texts have many lines, the cause last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\x1b\[[0-9;]*m", "", lines[-1]).rstrip(".") if lines else type(error).__name__
