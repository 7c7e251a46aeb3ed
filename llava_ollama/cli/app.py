"""What the commands share: the global options, and the library's objects made from them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ollama.cli.output import Output
from llava_ollama.errors import UnknownModel, UsageProblem

if TYPE_CHECKING:
    from llava_ollama.catalog import Catalog
    from llava_ollama.cli.bars import ClosableReporter
    from llava_ollama.client import Llava
    from llava_ollama.daemon import Daemon
    from llava_ollama.install import Installer
    from llava_ollama.ledger import Ledger
    from llava_ollama.records import Records
    from llava_ollama.settings import Settings
    from llava_ollama.transfer import Name
    from llava_ollama.weights import Weights


@dataclass
class App:
    """The global options, and what is made of them when it is first needed."""

    host: str | None = None
    json: bool = False
    verbose: bool = False
    quiet: bool = False
    no_color: bool = False
    retry: bool = True
    """Whether a daemon that is busy is asked again."""
    asking: str = "the model"
    """What `asked` has made a client of, for people."""
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    @cached_property
    def out(self) -> Output:
        """Where results and remarks go."""
        colour = not (self.no_color or os.environ.get("NO_COLOR"))
        return Output(json=self.json, quiet=self.quiet, verbose=self.verbose, colour=colour)

    @cached_property
    def settings(self) -> Settings:
        """Flags, environment and defaults."""
        from llava_ollama.settings import Settings

        return Settings.read(host=self.host)

    @cached_property
    def catalog(self) -> Catalog:
        """The shipped catalog with the user's own."""
        from llava_ollama import catalog

        return catalog.load(self.settings.catalog)

    @cached_property
    def daemon(self) -> Daemon:
        """The daemon that the user means."""
        from llava_ollama.daemon import Daemon

        daemon = Daemon(self.settings.host, timeout=self.settings.timeout)
        self._open.callback(daemon.close)
        return daemon

    @cached_property
    def records(self) -> Records:
        """What earlier runs wrote down."""
        from llava_ollama.records import Records

        return Records(self.settings.state)

    @cached_property
    def reporter(self) -> ClosableReporter:
        """Progress bars on a terminal, notes everywhere, nothing with `--quiet`."""
        reporter = self.out.reporter()
        self._open.callback(reporter.close)
        return reporter

    def ledger(self, *, rehash: bool = False) -> Ledger:
        """Return what is known of unchanged files; nothing of the past with `rehash`."""
        from llava_ollama.ledger import LEDGER, Ledger

        return Ledger(self.settings.cache / LEDGER, rehash=rehash)

    def weights(self, folders: tuple[Path, ...] = (), ledger: Ledger | None = None) -> Weights:
        """Return the weight files' room; files are looked for in `folders` first."""
        from llava_ollama.weights import Weights

        return Weights(
            folders=folders,
            downloads=self.settings.cache / "downloads",
            reporter=self.reporter,
            ledger=ledger or self.ledger(),
            catalog=self.catalog,
            records=self.records,
        )

    def installer(
        self, folders: tuple[Path, ...] = (), *, only: Name | None = None, rehash: bool = False
    ) -> Installer:
        """Return an installer for the daemon; it uses `only` the way that the user names."""
        from llava_ollama.install import Installer
        from llava_ollama.ways import Ways

        settings, ledger = self.settings, self.ledger(rehash=rehash)
        ways = Ways(
            daemon=self.daemon,
            records=self.records,
            ledger=ledger,
            folders=settings.models,
            only=only,
            registry=settings.registry,
            no_pull=settings.no_pull,
        )
        weights = self.weights(folders, ledger)
        return Installer(self.daemon, weights, self.records, ways=ways, reporter=self.reporter)

    def recover(self) -> None:
        """Settle what killed installs have left at the daemon."""
        from llava_ollama import swap, ways
        from llava_ollama.tiny import demo

        ways.recover(self.daemon, self.records)
        demo.clear(self.daemon, self.records)
        for name in swap.recover(self.daemon, self.records, self.reporter):
            self.reporter.note(f"an install of `{name}` had been killed; its traces are removed")

    def llava(self, name: str) -> Llava:
        """Return a client of the installed model `name`."""
        from llava_ollama.client import Llava
        from llava_ollama.daemon import full_name

        full_name(name)
        settings = self.settings
        llava = Llava(name, host=settings.host, timeout=settings.timeout, **self._asking_again())
        self._open.callback(llava.close)
        return llava

    def asked(
        self, name: str | None, *, embedded: str | None = None, server: str | None = None
    ) -> Llava:
        """Return a client of what the options name, by default the one installed model of ours."""
        from llava_ollama import inventory
        from llava_ollama.client import Llava

        self.check_one(name, embedded, server)
        self.asking = name or embedded or server or ""
        if embedded:
            return self.embedded(*self.named(embedded))
        if server:
            return Llava.server(server, timeout=self.settings.timeout, **self._asking_again())
        name = name or inventory.the_only_one(self.daemon, self.catalog, self.records)
        self.asking = name.removesuffix(":latest")
        return self.llava(name)

    def embedded(self, name: str, quant: str | None = None) -> Llava:
        """Return a client of a catalog model that llama.cpp runs in this process."""
        from llava_ollama.client import Llava

        return Llava.embedded(name, quant=quant, reporter=self.reporter)

    def _asking_again(self) -> dict[str, Any]:
        return {"reporter": self.reporter, **({} if self.retry else {"retry_for": 0.0})}

    def check_one(self, model: str | None, embedded: str | None, server: str | None) -> None:
        """Refuse options that name more than one who is to answer."""
        if sum(map(bool, (model, embedded, server))) > 1:
            raise UsageProblem(
                "`--model`, `--embedded` and `--server` exclude each other",
                hint="Give one of them",
            )

    def named(self, name: str) -> tuple[str, str | None]:
        """Return the catalog model and the quant that `MODEL[:QUANT]` means.

        Refuses the name that a catalog model has in Ollama, `MODEL-QUANT`.
        """
        entries = self.catalog.entries
        pairs = ((model, quant) for model, entry in entries.items() for quant in entry.quants)
        meant = {f"{model}-{quant}": f"{model}:{quant}" for model, quant in pairs}
        if name in meant and name not in entries:
            hint = f"Did you mean `{meant[name]}`?"
            raise UnknownModel(f"no model `{name}` in the catalog", hint=hint)
        entry, _, quant = name.partition(":")
        return entry, quant or None

    def close(self) -> None:
        """Close what was opened."""
        self._open.close()
