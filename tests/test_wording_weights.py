"""What is said where a weight file cannot be had, is not the right one or does not arrive.

What faults on the way to a daemon come to stands in test_transfer_faults.py.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llava_ollama import resources
from llava_ollama.catalog import WeightFile
from llava_ollama.daemon import Daemon
from llava_ollama.errors import LlavaOllamaError
from llava_ollama.ledger import Ledger
from llava_ollama.records import Records
from llava_ollama.store import Store
from llava_ollama.transfer import Blob, Link, Pull
from llava_ollama.transfer.sources import changed, opened, wrong
from llava_ollama.weights import Weights, hub_errors
from llava_ollama.weights.download import SPACE, disk
from llava_ollama.weights.mended import mended_copy
from tests.hub import Fault, LoopbackHub
from tests.published import rewrite
from tests.stand_ins import BARE, stand_in

FOREIGN = "https://elsewhere/5ecret"
LOGIN = "Log in with `hf auth login`, or set `HF_TOKEN`"
PROXY = "Check `HF_ENDPOINT`, and whether a proxy or a login page is in between"
ANEW_HERE = "Nothing was changed. Run the same command again: it looks at the file anew"
LISTED = "Use the file that the catalog means, or correct its entry"
ANEW = "Delete that file and run the same command again: it downloads anew"


@dataclass
class Desk:
    """A Hub with one file, `m.gguf` of `o/n`, and a folder."""

    hub: LoopbackHub
    folder: Path

    def __post_init__(self) -> None:
        self.path = self.folder / "m.gguf"
        self.path.write_bytes(b"x" * 3000)
        self.file = self.hub.publish(self.path, "o/n")
        self.weights = Weights(
            downloads=self.folder / "downloads",
            endpoint=self.hub.url,
            hub_cache=self.folder / "hub",
            wait=0.001,
        )

    @property
    def given(self) -> WeightFile:
        return WeightFile(name="m.gguf", path=self.path)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with LoopbackHub() as hub:
        yield Desk(hub, tmp_path)


def is_said(desk: Desk, error: LlavaOllamaError, message: str, hint: str, *, code: int = 1) -> None:
    """Compare; `{hub}`, `{folder}`, `{revision}` and `{sum}` stand for what differs by run."""
    replies = {desk.hub.url: "{hub}", str(desk.folder): "{folder}"}
    replies |= {desk.file.revision: "{revision}"}
    said = [error.message, error.hint or ""]
    for value, name in replies.items():
        said = [text.replace(value, name) for text in said]
    said = [re.sub(r"\b[0-9a-f]{8}\b(?=[…`])", "{sum}", text) for text in said]
    assert said == [message, hint]
    assert error.exit_code == code


REFUSALS = (
    (Fault(401), "the Hub denies access to `o/n` (HTTP 401)", LOGIN),
    (
        Fault(401, "RepoNotFound"),
        "`o/n` is private, or does not exist, at `{hub}`",
        f"Check the name `o/n`. {LOGIN}",
    ),
    (
        Fault(403, "GatedRepo"),
        "`o/n` is gated and this account is not on its list",
        f"Ask for access at {{hub}}/o/n. {LOGIN}",
    ),
    (
        Fault(404, "RepoNotFound"),
        "there is no repository `o/n` at `{hub}`",
        f"Check the name `o/n`; if it is private: {LOGIN}",
    ),
    (
        Fault(404, "RevisionNotFound"),
        "`o/n` has no revision `{revision}`",
        "See which there are: {hub}/o/n/commits/main",
    ),
    (
        Fault(404, "EntryNotFound"),
        "`o/n` has no file `m.gguf` at revision `{revision}`",
        "See which there are: {hub}/o/n/tree/{revision}",
    ),
    (
        Fault(400),
        "`{hub}` answered HTTP 400 for `m.gguf` of `o/n`",
        "See whether the repository is well: {hub}/o/n",
    ),
    (Fault(bare=True), "`{hub}` answers, but not as a Hub does", PROXY),
)


@pytest.mark.parametrize(("fault", "message", "hint"), REFUSALS, ids=lambda value: str(value)[:40])
def test_the_hub_refuses(desk: Desk, fault: Fault, message: str, hint: str) -> None:
    desk.hub.always_head = fault
    with pytest.raises(LlavaOllamaError) as caught:
        desk.weights.fetch(desk.file)
    is_said(desk, caught.value, message, hint)


def _foreign() -> list[tuple[Exception, str, str, int]]:
    """Return errors of the libraries that no Hub of ours can be brought to cause."""
    import httpx2
    from huggingface_hub import errors

    return [
        (
            errors.OfflineModeIsEnabled(FOREIGN),
            "`m.gguf` is not on this machine, and `HF_HUB_OFFLINE` forbids asking the Hub",
            "Unset `HF_HUB_OFFLINE`, or name the folder that has the file with `--dir`",
            3,
        ),
        (
            errors.HFValidationError(FOREIGN),
            "`o/n` is not the name of a Hub repository",
            "Its form is `owner/name`",
            2,
        ),
        (
            errors.OIDCError(FOREIGN),
            "no token for `o/n` could be had",
            "Check `HF_OIDC_RESOURCE`, or unset it",
            1,
        ),
        (
            httpx2.ProxyError(FOREIGN),
            "the proxy does not let `m.gguf` through from `{hub}`",
            "Check `HTTPS_PROXY` and `NO_PROXY`",
            3,
        ),
        (
            httpx2.LocalProtocolError(FOREIGN),
            "the request for `m.gguf` could not be sent",
            "Check `HF_TOKEN` for characters that do not belong there",
            1,
        ),
        (
            httpx2.UnsupportedProtocol(FOREIGN),
            "`{hub}` is not the address of a Hub",
            "Check `HF_ENDPOINT`",
            2,
        ),
    ]


def test_what_the_libraries_raise(desk: Desk) -> None:
    for error, message, hint, code in _foreign():
        door = hub_errors.door(desk.file, desk.hub.url)
        with pytest.raises(LlavaOllamaError) as caught, door:
            raise error
        is_said(desk, caught.value, message, hint, code=code)


def _rotten(desk: Desk) -> None:
    local = desk.weights.fetch(desk.file)
    local.path.write_bytes(bytes(3000))
    desk.weights.fetch(desk.file)


def _full(desk: Desk) -> None:
    with disk(desk.folder):
        raise OSError(errno.ENOSPC, "no space")


def _no_room(desk: Desk) -> None:
    with Store(desk.folder).writing():
        raise OSError(errno.ENOSPC, "no space")


def _nameless(desk: Desk) -> None:
    key = ("o/n", "main", "m.gguf")
    desk.hub.files[key] = replace(desk.hub.files[key], etag="a" * 40)
    desk.weights.fetch(replace(desk.file, revision="main", size=None, sha256=None))


def _wrong(desk: Desk) -> None:
    desk.hub.always_body = Fault(wrong=True)
    desk.weights.fetch(desk.file)


def _mended(desk: Desk) -> None:
    original = resources.bundled("tiny-llava-mmproj-f16.gguf")
    path = rewrite(original, desk.folder / "p.gguf", {"clip.projector_type": None})
    copy = mended_copy(WeightFile(name="p.gguf", path=path))
    desk.weights.fetch(replace(copy, sha256="0" * 64))


FILES: dict[str, tuple[Callable[[Desk], object], str, str, int]] = {
    "above the repository": (
        lambda desk: desk.weights.fetch(replace(desk.file, name="../m.gguf")),
        "`../m.gguf` cannot be a file of a repository",
        "Its form is `model.gguf`",
        2,
    ),
    "no text": (
        lambda desk: desk.weights.fetch(replace(desk.file, name="\ud800.gguf")),
        "`\\ud800.gguf` is not UTF-8 text, so the Hub cannot be asked for it",
        "Write the repository, revision and file as the Hub shows them",
        2,
    ),
    "another size": (
        lambda desk: desk.weights.fetch(replace(desk.given, size=7)),
        "`{folder}/m.gguf` has 3000 bytes, the published file has 7",
        LISTED,
        1,
    ),
    "other bytes": (
        lambda desk: desk.weights.fetch(replace(desk.given, sha256="0" * 64)),
        "`{folder}/m.gguf` does not have the published bytes (sha256 {sum}…, not {sum}…)",
        LISTED,
        1,
    ),
    "a download that rots": (
        _rotten,
        (
            "`{folder}/downloads/{place}/m.gguf` has changed since it was downloaded (sha256 "
            "{sum}…, not {sum}…) and is now `{folder}/downloads/m.gguf.corrupt-{sum}`"
        ),
        ANEW,
        1,
    ),
    "another file at the Hub": (
        lambda desk: desk.weights.fetch(replace(desk.file, sha256="0" * 64)),
        "the Hub's `m.gguf` at `{revision}` of `o/n` is not the pinned one",
        "Its owner has replaced it; pin the new one in a catalog file of your own",
        1,
    ),
    "nobody knows its sum": (
        _nameless,
        "neither the catalog nor the Hub gives a sha256 for `m.gguf` of `o/n`",
        "Give its `sha256` in a catalog file of your own",
        1,
    ),
    "other bytes from the Hub": (
        _wrong,
        (
            "`m.gguf` arrived with other bytes than the published ones (sha256 {sum}…, not {sum}…)"
            " and is now `{folder}/downloads/m.gguf.corrupt-{sum}`"
        ),
        ANEW,
        1,
    ),
    "no space": (_full, "no space is left in `{folder}`", SPACE, 1),
    "no space for the daemon": (
        _no_room,
        "no space is left in the daemon's models folder `{folder}`",
        "Free space there and run the same command again",
        1,
    ),
    "a copy that was mended otherwise": (
        _mended,
        "`{folder}/p.gguf` mended has sha256 {sum}…, not {sum}…",
        "Install the model again with `--mend --force`",
        1,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_the_one(desk: Desk, name: str) -> None:
    call, message, hint, code = FILES[name]
    with pytest.raises(LlavaOllamaError) as caught:
        call(desk)
    message = message.replace("{place}", str(desk.file.sha256)[:16])
    is_said(desk, caught.value, message, hint, code=code)


def test_a_source_that_is_not_the_one(desk: Desk) -> None:
    blob = Blob(desk.path, "0" * 64, 3000)
    message = "`{folder}/m.gguf` does not have the bytes of sha256 {sum}…"
    is_said(desk, wrong(blob), message, ANEW_HERE)
    hint = "Wait until it is complete, then run the same command again"
    is_said(desk, changed(blob), "`{folder}/m.gguf` changed while it was read", hint)
    desk.path.unlink()
    with pytest.raises(LlavaOllamaError) as caught, opened(blob):
        pass
    message = "`{folder}/m.gguf` cannot be read: no such file or directory"
    is_said(desk, caught.value, message, "Check that it is there and readable")


def test_a_daemon_that_does_not_have_what_it_should(desk: Desk) -> None:
    (desk.folder / "blobs").mkdir()
    sha256 = hashlib.sha256(desk.path.read_bytes()).hexdigest()
    ledger, records = Ledger(desk.folder / "ledger.sqlite3"), Records(desk.folder / "state")
    replies = {**BARE, "/api/pull": {"status": "success"}, "/api/delete": {}}
    with stand_in(replies) as host:
        daemon = Daemon(host)
        link = Link(daemon, Store(desk.folder), ledger)
        pull = Pull(daemon, records, "x:1", frozenset({sha256}))
        with pytest.raises(LlavaOllamaError) as caught:
            link.bring(Blob(desk.path, sha256, 3000), desk.weights.reporter)
        message = f"what is in `{{folder}}` does not appear at {host}"
        hint = "It is another daemon's folder; use `--transfer upload`"
        is_said(desk, caught.value, message, hint)
        with pytest.raises(LlavaOllamaError) as caught:
            pull.bring(Blob(None, sha256, 3000), desk.weights.reporter)
        message = "`x:1` came without the file of sha256 {sum}…"
        is_said(desk, caught.value, message, "The library has moved on: use `--transfer upload`")
        daemon.close()
