"""Who is there: the nodes of a cluster, and which of them have the model and do well."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from llava_ollama import __version__
from llava_ollama.batch.captioner import Greeting
from llava_ollama.batch.crew import Crew, Ended, Member
from llava_ollama.batch.events import HostChanged, HostLevel, HostState, Listener, Warned
from llava_ollama.batch.nodes import Node
from llava_ollama.batch.tally import Tally
from llava_ollama.errors import (
    DaemonUnreachable,
    EngineUnavailable,
    LlavaOllamaError,
    RunnerCrashed,
    UsageProblem,
)

_LOOK = 5.0
"""Seconds between two looks at which nodes there are."""
_AGAIN = 30.0
"""Seconds after which a node that was left out is asked again."""
_TURN = 0.2
"""Seconds of waiting for a word."""
_LATE = 60.0
"""Seconds for the other nodes to say which model they have, after the first has."""
_DEATHS = 5
"""Of a node's process, after which it is not started again at once."""


@dataclass
class Post:
    """A node, and who is there."""

    node: Node
    member: Member | None = None
    is_ready: bool = False
    """Whether it has said that it has the model."""
    later: float = 0.0
    """When it may be asked again."""
    deaths: int = 0
    error: LlavaOllamaError | None = None
    """Why it was left out, the last time."""

    def told(self) -> HostLevel:
        """Return how it does, for whoever watches."""
        state: HostState = "up" if self.is_ready else "waiting" if self.member else "down"
        return self.node.told(state)


class Roster:
    """The posts of a run, by the node's id."""

    def __init__(self, crew: Crew, wait: float, tell: Listener) -> None:
        self.posts: dict[str, Post] = {}
        self.digest: str | None = None
        """Of the model that all have."""
        self.is_closed = False
        """Whether nobody is hired any more."""
        self._crew, self._wait, self._tell = crew, wait, tell
        self._is_given = False
        self._noted: set[str] = set()
        self._alone = time.monotonic()
        self._look_at = 0.0

    def __iter__(self) -> Iterator[Post]:
        return iter(self.posts.values())

    def agree(self, digest: str | None) -> None:
        """Wait for the nodes' greetings; see `Cluster.agree`."""
        self.digest, self._is_given = digest, digest is not None
        self._alone = time.monotonic()
        first: float | None = None
        while first is None or time.monotonic() - first < _LATE:
            self.look()
            for member, word in self._crew.hear(_TURN):
                post = self.posts[member.place.id]
                if isinstance(word, Greeting):
                    self.greeted(post, word)
                elif isinstance(word, Ended):
                    name = post.node.name
                    error = lost(name) if word.is_lost else died(name, word.died)
                    self.leave_out(post, word.error or error)
            if any(post.is_ready for post in self):
                first = first or time.monotonic()
                if all(post.is_ready or post.member is None for post in self):
                    break
        self._is_given = True

    def look(self) -> None:
        """Hire a member on every node that has none and may have one.

        Raises:
            LlavaOllamaError: there is nobody to ask, and nobody to wait for any longer.
        """
        now = time.monotonic()
        if not self.is_closed and now >= self._look_at:
            self._look_at = now + _LOOK
            for place in self._crew.places():
                node = Node(place.id, place.name, Tally(now))
                post = self.posts.setdefault(place.id, Post(node))
                if post.member is None and post.later <= now:
                    post.member, post.is_ready = self._crew.hire(place), False
        self._check_anybody(now)

    def _check_anybody(self, now: float) -> None:
        if any(post.is_ready for post in self):
            self._alone = now
            return
        errors = [(p.node.name, p.error) for p in self if p.error and p.member is None]
        lasting = [pair for pair in errors if pair[1].exit_code != DaemonUnreachable.exit_code]
        is_hopeless = 0 < len(lasting) == len(self.posts)
        if is_hopeless or now - self._alone >= self._wait:
            raise nobody_there(lasting or errors, self._wait)

    def greeted(self, post: Post, greeting: Greeting) -> None:
        """Take in a node that says which model it has.

        Raises:
            UsageProblem: it is another than that of the first, and nobody has said which it is.
        """
        name = post.node.name
        if greeting.version != __version__:
            self.leave_out(post, other_version(name, greeting.version))
        elif self.digest and greeting.digest and greeting.digest != self.digest:
            error = other_model(name, greeting.digest, self.digest)
            if not self._is_given:
                raise error
            self.leave_out(post, error)
        else:
            self.digest = self.digest or greeting.digest
            post.is_ready, post.error = True, None
            post.node.host = address(greeting.host, name)

    def leave_out(self, post: Post, error: LlavaOllamaError | None, *, soon: bool = False) -> None:
        """End a node's member; another is hired after a while, or `soon`."""
        if post.member is not None:
            self._crew.dismiss(post.member)
        post.node.blind, post.node.level = 0, None
        post.member, post.is_ready, post.error = None, False, error
        post.later = time.monotonic() + (0.0 if soon else _AGAIN)
        if soon:
            self._look_at = 0.0
        if error is not None:
            self._tell(HostChanged(post.node.host or post.node.name, "down", error.message))
            note = f"`{post.node.name}` is left out for now: {error.message}"
            if note not in self._noted:
                self._noted.add(note)
                self._tell(Warned(note, error.hint or ""))

    def is_there(self, post: Post) -> bool:
        """Whether the node of a post is alive, whatever became of its member."""
        return any(place.id == post.node.id for place in self._crew.places())

    def died(self, post: Post, why: str) -> None:
        """Take note that a node's process died."""
        post.deaths += 1
        self.leave_out(post, died(post.node.name, why), soon=post.deaths < _DEATHS)


def address(host: str, node: str) -> str:
    """Return what the journal calls a node's host: its own loopback address says nothing here."""
    for own in ("127.0.0.1", "localhost", "[::1]"):
        before, found, after = host.partition(f"//{own}")
        if found:
            return f"{before}//{node}{after}"
    return host if "://" in host else f"{host} on {node}"


def nobody_there(errors: list[tuple[str, LlavaOllamaError]], wait: float) -> LlavaOllamaError:
    """Return the error for a cluster on which nobody can be asked."""
    if not errors:
        return DaemonUnreachable(
            f"the cluster has no node that takes work, for {wait:g} seconds",
            hint="`ray status` shows its nodes; those without CPUs are left alone",
        )
    node, error = errors[0]
    return type(error)(
        f"no node of the cluster can answer; `{node}` says: {error.message}", hint=error.hint
    )


def other_version(node: str, version: str) -> UsageProblem:
    """Return the error for a node with another version of this package."""
    return UsageProblem(
        f"`{node}` has llava-ollama {version}, and this is {__version__}",
        hint="Install the same version on all nodes",
    )


def other_model(node: str, digest: str, known: str) -> UsageProblem:
    """Return the error for a node that has another model under the name."""
    return UsageProblem(
        f"`{node}` holds another model ({digest[:12]}) than this run asks ({known[:12]}), so their"
        " answers would not be of one kind",
        hint="Install the same one there: llava-ollama install --force",
    )


def no_pictures(node: str) -> UsageProblem:
    """Return the error for a node that does not find what is here."""
    return UsageProblem(
        f"`{node}` does not find the pictures that are here",
        hint="Mount their folder there, at the same path",
    )


def lost(node: str) -> DaemonUnreachable:
    """Return the error for a node that is away."""
    return DaemonUnreachable(f"the node `{node}` is lost", hint="It is used again if it comes back")


def died(node: str, why: str) -> LlavaOllamaError:
    """Return the error for a process that died, or never began, on a node that is alive."""
    if "ModuleNotFoundError" in why:
        return EngineUnavailable(
            f"`{node}` cannot run this: {why}", hint="Install `llava-ollama[ray]` on all nodes"
        )
    return RunnerCrashed(
        f"the process on `{node}` is gone: {why}",
        hint="There may be too little memory; Ray's log of that node says more",
    )
