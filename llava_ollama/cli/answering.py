"""Who answers in a `batch`: daemons, a llama-server, this process, or the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava_ollama.cli.doctor import examined
from llava_ollama.errors import CheckFailed, DaemonUnreachable, LlavaOllamaError, UsageProblem

if TYPE_CHECKING:
    import tenacity

    from llava_ollama.batch.events import Listener, Summary
    from llava_ollama.batch.hosts import Site
    from llava_ollama.batch.local import Batch
    from llava_ollama.batch.sources import Sources
    from llava_ollama.cli.app import App

    Describe = Callable[[Batch, Sources, Listener], Summary]


@dataclass(frozen=True)
class Who:
    """What the options say of it; `address` is that of a Ray cluster."""

    model: str | None
    hosts: Sequence[str]
    embedded: str | None
    server: str | None
    address: str | None

    def found(self, app: App, wait: float) -> tuple[str, Describe]:
        """Return the name of the model, and what has it asked: from here, or on a cluster's nodes.

        Without a name it is that of the one model of ours that is installed; for the daemon that
        knows it this waits up to `wait` seconds, as the run does for its hosts.

        Raises:
            UsageProblem: the options contradict each other, or there is no such model.
            DaemonUnreachable: the daemon that knows the name has not answered for so long.
        """
        if self.address is not None:
            return self._on_nodes(app, self.address, wait)
        return self._from_here(app, wait)

    def _from_here(self, app: App, wait: float) -> tuple[str, Describe]:
        from llava_ollama.batch import local

        named, sites = self._sites(app, wait)

        def describe(batch: Batch, sources: Sources, tell: Listener) -> Summary:
            try:
                return local.describe(batch, sites, sources, tell=tell)
            except CheckFailed:
                if not (self.embedded or self.server):
                    _diagnose(app, tell)
                raise

        return named, describe

    def _sites(self, app: App, wait: float) -> tuple[str, list[Site]]:
        from llava_ollama.batch import hosts as hosting
        from llava_ollama.in_process import Which
        from llava_ollama.settings import parse_host

        settings = app.settings
        app.check_one(self.model, self.embedded, self.server)
        if self.embedded:
            which = Which(*app.named(self.embedded))
            return self.embedded, [hosting.embedded(which, reporter=app.reporter)]
        if url := self.server:
            return url, [hosting.server(url, api_key=settings.api_key, timeout=settings.timeout)]
        urls = list(dict.fromkeys(parse_host(host, "--host") for host in self.hosts))
        if urls and app.host is None:
            app.host = urls[0]
        name = (self.model or _the_only_one(app, wait)).removesuffix(":latest")
        if self.model is None:
            app.out.note(f"asking {name}, the only model of ours that is installed")
        return name, [
            hosting.OllamaSite(name, url, timeout=settings.timeout)
            for url in urls or [settings.host]
        ]

    def _on_nodes(self, app: App, address: str, wait: float) -> tuple[str, Describe]:
        from llava_ollama.batch import cluster
        from llava_ollama.batch.captioner import Seat

        more = self.model or self.hosts
        if self.server or len(self.hosts) > 1 or (self.embedded and more):
            raise UsageProblem(
                "with `--ray` each node asks one model of its own",
                hint="Give `--model`, and `--host` as a node sees it; or `--embedded` alone",
            )
        timeout = app.settings.timeout
        if self.embedded:
            app.named(self.embedded)  # refused here rather than on every node
            seat = Seat(embedded=self.embedded, timeout=timeout)
        else:
            name = (self.model or _the_only_one(app, wait)).removesuffix(":latest")
            seat = Seat(name, next(iter(self.hosts), None), timeout=timeout)

        def describe(batch: Batch, sources: Sources, tell: Listener) -> Summary:
            return cluster.describe(batch, address, seat, sources, tell=tell)

        return self.embedded or seat.model, describe


def _the_only_one(app: App, wait: float) -> str:
    import tenacity

    from llava_ollama import inventory

    def told(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1:
            app.out.note(f"{app.daemon.host} does not answer; waiting for up to {wait:g} seconds")

    waiting = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(DaemonUnreachable),
        wait=tenacity.wait_fixed(1),
        stop=tenacity.stop_before_delay(wait),
        before_sleep=told,
        reraise=True,
    )
    return waiting(inventory.the_only_one, app.daemon, app.catalog, app.records)


def _diagnose(app: App, tell: Listener) -> None:
    """Tell what `doctor` finds where the model does not see."""
    from llava_ollama.batch.events import Warned

    with suppress(LlavaOllamaError):  # what it found until then is told
        for finding in examined(app):
            if finding.status != "ok":
                tell(Warned(f"{finding.check}: {finding.detail}", finding.fix))
