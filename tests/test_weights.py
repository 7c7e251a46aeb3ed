"""Finding, fetching and proving weight files, against a Hub on the loopback interface."""

from __future__ import annotations

import errno
import filecmp
import inspect
import json
import shutil
import signal
import socket
import ssl
import time
from collections import Counter, deque
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any, cast

import pytest

from llava_ollama.catalog import WeightFile, load
from llava_ollama.errors import (
    AccessDenied,
    ChecksumMismatch,
    DownloadError,
    HubUnreachable,
    LlavaOllamaError,
    NotEnoughSpace,
    UsageProblem,
)
from llava_ollama.progress import Reporter
from llava_ollama.weights import LocalFile, Weights, hub_errors
from llava_ollama.weights.download import disk, gigabytes
from llava_ollama.weights.hashing import HashedFile
from tests.hub import FINE, SIGNATURE, Fault, LoopbackHub, make_file, start_fetch

MB = 1 << 20
REPO = "owner/llava"
CHUNK = 10 * MB
"""What http_get hands over at once."""


class Recorder(Reporter):
    """Keeps what it is told, and adds up how far each task is."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: Counter[str] = Counter()
        self.restarts: list[tuple[str, int]] = []
        self.open: set[str] = set()
        self.totals: dict[str, int | None] = {}

    def started(self, task: str, total: int | None = None) -> None:
        self.open.add(task)
        self.totals[task] = total

    def advanced(self, task: str, amount: int) -> None:
        assert task in self.open
        self.done[task] += amount

    def restarted(self, task: str, done: int = 0) -> None:
        self.restarts.append((task, done))
        self.done[task] = done

    def finished(self, task: str) -> None:
        self.open.remove(task)

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def hub():
    with LoopbackHub() as running:
        yield running
    assert not running.errors


@pytest.fixture(scope="module")
def big_path(tmp_path_factory) -> Path:
    return make_file(tmp_path_factory.mktemp("published") / "model.gguf", 72 * MB + 5)


@pytest.fixture
def big(hub: LoopbackHub, big_path: Path) -> WeightFile:
    return hub.publish(big_path, REPO)


@pytest.fixture
def small(hub: LoopbackHub, tmp_path: Path) -> WeightFile:
    return hub.publish(make_file(tmp_path / "mmproj.gguf", 3 * MB + 7, seed=1), REPO)


@pytest.fixture
def reporter() -> Recorder:
    return Recorder()


@pytest.fixture
def weights(hub, tmp_path, reporter):
    def make(**changes: Any) -> Weights:
        settings: dict[str, Any] = {
            "downloads": tmp_path / "downloads",
            "reporter": reporter,
            "endpoint": hub.url,
            "hub_cache": tmp_path / "hub-cache",
            "wait": 0.01,
        }
        return Weights(**settings | changes)

    return make


def unpinned(file: WeightFile) -> WeightFile:
    return replace(file, revision="main", size=None, sha256=None)


def partials(weights: Weights) -> list[Path]:
    return sorted(weights.downloads.glob("*.partial"))


def failure(weights: Weights, file: WeightFile, kind: type[LlavaOllamaError]) -> LlavaOllamaError:
    """Fetch and return the error, which is of exactly this kind and gives no secret away."""
    with pytest.raises(kind) as caught:
        weights.fetch(file)
    assert isinstance(weights.reporter, Recorder)
    said = [caught.value.message, caught.value.hint or "", *weights.reporter.notes]
    assert not [text for text in said if SIGNATURE in text or "\n" in text]
    assert not caught.value.message.endswith(".")
    assert not weights.reporter.open
    return caught.value


def check(hub: LoopbackHub, local: LocalFile, file: WeightFile) -> None:
    assert (local.sha256, local.size) == (file.sha256, file.size)
    assert filecmp.cmp(local.path, hub.by_etag(str(file.sha256)).path, shallow=False)


def interrupted(hub: LoopbackHub, weights: Weights, file: WeightFile) -> int:
    """Let a download fail after 53 MB and return how many bytes of it are kept."""
    # A reset takes with it what the receiver has not read yet, some megabytes; http_get passes it
    # on at once, whereas after a mere end it waits for a second.
    hub.on_body.append(Fault(cut=53 * MB, reset=True))
    hub.always_body = Fault(status=500)
    failure(weights, file, HubUnreachable)
    hub.always_body = FINE
    hub.requests.clear()
    hub.served = 0
    (partial,) = partials(weights)
    kept = partial.stat().st_size
    assert kept in {4 * CHUNK, 5 * CHUNK}
    return kept


# What is at hand


def test_bundled_files_need_no_hub(tmp_path):
    entry = load().entry("tiny-llava")
    weights = Weights(downloads=tmp_path / "none", endpoint="http://127.0.0.1:9")
    for file in (entry.projector, *entry.quants.values()):
        assert weights.locate(file).missing == 0
        local = weights.fetch(file)
        assert (local.origin, local.sha256, local.size) == ("bundled", file.sha256, file.size)
    assert not (tmp_path / "none").exists()


def test_a_path_without_a_pin_is_hashed(weights, small, tmp_path):
    file = WeightFile(name="mine.gguf", path=tmp_path / "mmproj.gguf")
    assert weights().locate(file).sha256 is None
    local = weights().fetch(file)
    assert (local.origin, local.sha256) == ("given", small.sha256)


@pytest.mark.parametrize("what", ["missing", "directory"])
def test_a_path_that_is_no_file(weights, tmp_path, what):
    path = tmp_path / what
    if what == "directory":
        path.mkdir()
    error = failure(weights(), WeightFile(name="mine.gguf", path=path), DownloadError)
    assert str(error) == f"`{path}` " + (
        "is not a file" if what == "directory" else "does not exist"
    )


def test_a_named_file_with_other_bytes_is_reported_and_left(weights, small, tmp_path):
    for content in (b"GGUF", bytes(3 * MB + 7)):
        path = tmp_path / "other.gguf"
        path.write_bytes(content)
        error = failure(weights(), replace(small, repo=None, path=path), ChecksumMismatch)
        assert f"`{path}`" in str(error)
        assert path.read_bytes() == content


def test_folders_are_searched_by_name(hub, weights, small, tmp_path):
    local = weights(folders=[tmp_path / "nowhere", tmp_path]).fetch(small)
    assert (local.path, local.origin) == (tmp_path / "mmproj.gguf", "given")
    assert not hub.requests


def test_another_file_of_the_name_is_passed_over(weights, small, reporter, tmp_path):
    other = tmp_path / "folder" / "mmproj.gguf"
    other.parent.mkdir()
    other.write_bytes(b"GGUF")
    searching = weights(folders=[other.parent])
    assert searching.locate(small).origin == "hub"
    assert searching.fetch(small).origin == "downloaded"
    assert reporter.notes == [f"`{other}` has 4 bytes, not {small.size}: it is another file"]
    assert other.read_bytes() == b"GGUF"


def test_the_right_size_with_other_bytes_is_an_error(hub, weights, small, tmp_path):
    other = tmp_path / "folder" / "mmproj.gguf"
    other.parent.mkdir()
    other.write_bytes(bytes(small.size))
    error = failure(weights(folders=[other.parent]), small, ChecksumMismatch)
    assert str(error).startswith(f"`{other}` does not have the published bytes (sha256 ")
    assert other.read_bytes() == bytes(small.size)
    assert not hub.requests


@pytest.fixture
def cached(hub, small, tmp_path) -> Path:
    """The blob that huggingface_hub itself has put into its cache."""
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(
        REPO, small.name, revision="main", endpoint=hub.url, cache_dir=tmp_path / "hub-cache"
    )
    hub.requests.clear()
    return Path(path).resolve()


def test_the_hubs_cache_is_used_where_it_is(hub, weights, small, cached):
    assert weights().locate(small).origin == "cache"
    local = weights().fetch(small)
    assert (local.path, local.origin) == (cached, "cache")
    assert not hub.requests


def test_the_hubs_cache_stands_in_for_a_silent_hub(weights, small, cached, reporter):
    silent = weights(endpoint="http://127.0.0.1:9")
    assert silent.fetch(unpinned(small)).path == cached
    assert "the Hub does not answer; `mmproj.gguf` is taken from its cache" in reporter.notes


def test_a_damaged_cache_is_reported_and_left(weights, small, cached):
    cached.write_bytes(b"GGUF")
    error = failure(weights(), small, ChecksumMismatch)
    assert str(error) == f"`{cached}` has 4 bytes, the published file has {small.size}"
    assert cached.read_bytes() == b"GGUF"


# What has to be fetched


def test_two_files_must_fit_together(weights):
    fetching = weights()
    free = shutil.disk_usage(fetching.downloads.parent).free
    fetching.check_room([free // 3, None, free // 3])
    with pytest.raises(NotEnoughSpace, match=r"the files need .* are free"):
        fetching.check_room([free // 3 * 2, free // 3 * 2])
    assert not fetching.downloads.exists()


def test_the_hub_tells_a_size_that_is_not_pinned(weights, big, reporter):
    weights().fetch(replace(big, size=None))
    assert reporter.totals["download model.gguf"] == big.size


def test_download(hub, weights, big, reporter):
    fetching = weights()
    where = fetching.locate(big)
    assert (where.origin, where.path, where.missing) == ("hub", None, big.size)
    assert not hub.requests
    local = fetching.fetch(big)
    check(hub, local, big)
    assert local.origin == "downloaded"
    assert local.path.is_relative_to(fetching.downloads)
    assert reporter.done["download model.gguf"] == big.size
    assert not partials(fetching)
    assert hub.served == big.size


def test_a_second_time_nothing_is_fetched(hub, weights, small):
    first = weights().fetch(small)
    hub.requests.clear()
    assert weights().fetch(small) == first
    where = weights().locate(small)
    assert (where.origin, where.path, where.missing) == ("downloaded", first.path, 0)
    assert not hub.requests


def test_without_a_pin_the_hubs_sha256_counts(hub, weights, small):
    where = weights().locate(unpinned(small))
    assert (where.size, where.sha256) == (small.size, small.sha256)
    check(hub, weights().fetch(unpinned(small)), small)


def test_an_open_size_is_asked_of_the_hub(hub, weights, small):
    assert weights().locate(replace(small, size=None)).missing == small.size
    assert [request.method for request in hub.requests] == ["HEAD"]


def test_a_file_in_a_folder_of_the_repository(hub, weights, tmp_path):
    path = make_file(tmp_path / "x.gguf", 1000)
    local = weights().fetch(hub.publish(path, REPO, name="gguf/sub [1]/x.gguf"))
    assert local.path.name == "x.gguf"


def test_other_bytes_on_the_hub_than_pinned_are_not_fetched(hub, weights, small):
    for changed in (replace(small, sha256="0" * 64), replace(small, size=5)):
        error = failure(weights(), changed, ChecksumMismatch)
        assert "is not the pinned one" in str(error)
    assert not hub.bodies()


def test_a_hub_that_does_not_tell_sizes(hub, weights, small):
    hub.always_head = Fault(sizeless=True)
    assert weights().locate(unpinned(small)).missing is None
    check(hub, weights().fetch(unpinned(small)), small)
    check(hub, weights(downloads=weights().downloads / "2").fetch(small), small)


def test_a_file_without_any_sha256_is_refused(hub, weights, small):
    key = (REPO, "main", small.name)
    hub.files[key] = replace(hub.files[key], etag="a" * 40)
    assert "gives a sha256" in str(failure(weights(), unpinned(small), DownloadError))


def test_discard_removes_only_what_was_downloaded(weights, small, tmp_path):
    fetching = weights()
    local = fetching.fetch(small)
    given = fetching.fetch(replace(small, path=tmp_path / "mmproj.gguf"))
    fetching.discard(given)
    fetching.discard(replace(given, origin="downloaded"))
    assert given.path.exists()
    fetching.discard(local)
    fetching.discard(local)
    assert not local.path.parent.exists()


def test_a_download_that_rots_is_moved_aside(weights, small):
    local = weights().fetch(small)
    local.path.write_bytes(bytes(3 * MB + 7))
    error = failure(weights(), small, ChecksumMismatch)
    assert "has changed since it was downloaded" in str(error)
    assert not local.path.exists()
    assert weights().fetch(small) == local


# Interruptions


def test_resume_after_a_failure(hub, weights, big, reporter):
    kept = interrupted(hub, weights(), big)
    assert weights().locate(big).missing == big.size - kept
    check(hub, weights().fetch(big), big)
    assert [request.range for request in hub.bodies()] == [f"bytes={kept}-"]
    assert hub.served == big.size - kept
    assert ("download model.gguf", kept) in reporter.restarts
    assert reporter.done["download model.gguf"] == big.size


def test_cuts_and_resets_are_survived_and_told(hub, weights, big, reporter):
    hub.on_body.extend([Fault(cut=29 * MB, reset=True), Fault(cut=25 * MB)])
    check(hub, weights().fetch(big), big)
    assert [request.range for request in hub.bodies()] == [
        None,
        f"bytes={2 * CHUNK}-",
        f"bytes={4 * CHUNK}-",
    ]
    assert any("trying again" in note for note in reporter.notes)
    assert any("Trying to resume" in note for note in reporter.notes)


def test_getting_further_fills_the_budget_up(hub, weights, big):
    hub.on_body.extend([Fault(cut=19 * MB, reset=True)] * 6)
    check(hub, weights().fetch(big), big)


def test_a_server_that_ignores_the_range(hub, weights, big, reporter):
    interrupted(hub, weights(), big)
    hub.always_body = Fault(ignore_range=True)
    check(hub, weights().fetch(big), big)
    assert hub.served == big.size
    assert reporter.restarts[-1] == ("download model.gguf", 0)
    assert reporter.done["download model.gguf"] == big.size


def test_starting_anew_for_ever_is_given_up(hub, weights, big):
    hub.always_body = Fault(ignore_range=True, cut=29 * MB, reset=True)
    failure(weights(), big, HubUnreachable)
    assert len(hub.bodies()) <= 7


def test_a_refused_range_starts_anew(hub, weights, big):
    kept = interrupted(hub, weights(), big)
    hub.on_body.append(Fault(status=416))
    check(hub, weights().fetch(big), big)
    assert [request.range for request in hub.bodies()] == [f"bytes={kept}-", None]


def test_more_bytes_than_promised(hub, weights, big, small):
    hub.on_body.append(Fault(surplus=100))
    check(hub, weights().fetch(big), big)
    hub.always_body = Fault(surplus=100)
    error = failure(weights(), small, HubUnreachable)
    assert str(error) == f"more than the {small.size} bytes of `mmproj.gguf` arrived"
    assert len(hub.bodies()) == 7


def test_a_partial_file_that_is_too_long_or_complete(hub, weights, big, big_path):
    fetching = weights()
    interrupted(hub, fetching, big)
    (partial,) = partials(fetching)
    whole = big_path.read_bytes()
    partial.write_bytes(whole)
    check(hub, fetching.fetch(big), big)
    assert not hub.bodies()
    fetching.discard(fetching.fetch(big))
    partial.write_bytes(whole + b"more")
    check(hub, fetching.fetch(big), big)
    assert hub.served == big.size


def test_a_changed_file_starts_anew(hub, weights, big, tmp_path):
    fetching = weights()
    interrupted(hub, fetching, unpinned(big))
    newer = make_file(tmp_path / "newer.gguf", 70 * MB, seed=2)
    changed = hub.publish(newer, REPO, name=big.name)
    check(hub, fetching.fetch(unpinned(big)), changed)
    assert [request.range for request in hub.bodies()] == [None]
    assert "the Hub has another `model.gguf` now: starting anew" in fetching.reporter.notes
    assert not partials(fetching)


def test_a_file_that_changes_between_two_attempts(hub, weights, big, tmp_path):
    newer = make_file(tmp_path / "newer.gguf", 70 * MB, seed=2)

    class Publisher(Recorder):
        def note(self, message: str) -> None:
            super().note(message)
            if "trying again" in message:
                hub.publish(newer, REPO, name=big.name)

    hub.on_body.append(Fault(cut=25 * MB, reset=True))
    # Pinned to a commit nothing can change; so this is one whose branch moves.
    moving = replace(unpinned(big), sha256=None)
    fetching = weights(reporter=Publisher())
    error = failure(fetching, moving, ChecksumMismatch)
    assert "is not the pinned one" in str(error)
    assert fetching.fetch(moving).path.read_bytes() == newer.read_bytes()


def test_wrong_bytes_are_moved_aside_and_named(hub, weights, small):
    hub.on_body.append(Fault(wrong=True))
    fetching = weights()
    error = failure(fetching, small, ChecksumMismatch)
    (aside,) = fetching.downloads.glob("*.corrupt-*")
    assert f"`{aside}`" in str(error)
    assert aside.stat().st_size == small.size
    assert not partials(fetching)
    check(hub, fetching.fetch(small), small)


def test_ctrl_c_keeps_what_has_arrived(hub, weights, big):
    class Impatient(Recorder):
        def advanced(self, task: str, amount: int) -> None:
            super().advanced(task, amount)
            if self.done[task] >= 3 * CHUNK:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights(reporter=Impatient()).fetch(big)
    assert weights().locate(big).missing == big.size - 3 * CHUNK
    check(hub, weights().fetch(big), big)


def says(process: Any) -> list[Any]:
    return cast("list[Any]", json.loads(process.stdout.readline()))


def last(process: Any) -> list[Any]:
    out, err = process.communicate(timeout=60)
    assert not err
    return cast("list[Any]", json.loads(out.splitlines()[-1]))


def test_kill_and_resume(hub, big, big_path, tmp_path):
    downloads = tmp_path / "downloads"
    here = {"HF_ENDPOINT": hub.url}
    hub.on_body.append(Fault(pause=45 * MB))
    with start_fetch(big, downloads, environment=here) as process:
        arrived = 0
        while arrived < 4 * CHUNK:
            kind, _, amount = says(process)
            arrived += amount if kind == "advanced" else 0
        process.send_signal(signal.SIGKILL)
        process.communicate()
    hub.resume.set()
    hub.served = 0
    with start_fetch(big, downloads, environment=here) as process:
        kind, path, sha256, _ = last(process)
    assert (kind, sha256) == ("done", big.sha256)
    assert Path(path).read_bytes() == big_path.read_bytes()
    assert hub.served == big.size - 4 * CHUNK


def test_two_processes_do_not_meet_in_one_file(hub, weights, big, tmp_path):
    class Waiting(Recorder):
        def note(self, message: str) -> None:
            super().note(message)
            hub.resume.set()

    hub.on_body.append(Fault(pause=45 * MB))
    downloads = tmp_path / "downloads"
    with start_fetch(big, downloads, environment={"HF_ENDPOINT": hub.url}) as process:
        assert hub.paused.wait(30)
        second = weights(reporter=Waiting())
        local = second.fetch(big)
        assert last(process)[1] == str(local.path)
    assert second.reporter.notes == ["another process downloads `model.gguf`: waiting for it"]
    assert hub.served == big.size


def test_a_stall_is_given_up_and_resumed(hub, big, tmp_path):
    hub.on_body.append(Fault(pause=25 * MB))
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    with start_fetch(big, tmp_path / "downloads", environment=environment) as process:
        assert last(process)[0] == "done"
    assert [request.range for request in hub.bodies()] == [None, f"bytes={2 * CHUNK}-"]


def test_memory_does_not_grow_with_the_file(hub, big, small, tmp_path):
    peaks = []
    for file in (small, big):
        with start_fetch(file, tmp_path / "here", environment={"HF_ENDPOINT": hub.url}) as process:
            peaks.append(last(process)[3])
    assert peaks[1] - peaks[0] < 50 * MB


# What the Hub refuses


@pytest.mark.parametrize(
    "case",
    [
        (Fault(401), AccessDenied, "the Hub denies access to `owner/llava` (HTTP 401)"),
        (Fault(403), AccessDenied, "the Hub denies access to `owner/llava` (HTTP 403)"),
        (Fault(401, "RepoNotFound"), AccessDenied, "`owner/llava` is private, or does not exist"),
        (Fault(403, "GatedRepo"), AccessDenied, "`owner/llava` is gated"),
        (Fault(404, "RepoNotFound"), DownloadError, "there is no repository `owner/llava`"),
        (Fault(404, "RevisionNotFound"), DownloadError, "`owner/llava` has no revision `"),
        (Fault(404, "EntryNotFound"), DownloadError, "`owner/llava` has no file `mmproj.gguf`"),
        (Fault(404), DownloadError, "`owner/llava` has no file `mmproj.gguf`"),
        (Fault(400), DownloadError, "answered HTTP 400 for `mmproj.gguf` of `owner/llava`"),
        (Fault(410), DownloadError, "answered HTTP 410 for `mmproj.gguf` of `owner/llava`"),
        (Fault(bare=True), DownloadError, "answers, but not as a Hub does"),
    ],
)
def test_refusals_are_not_tried_again(hub, weights, small, case):
    fault, kind, words = case
    hub.always_head = fault
    error = failure(weights(), small, kind)
    assert type(error) is kind
    assert words in str(error)
    assert error.hint
    assert len(hub.requests) == 1
    assert error.exit_code == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusals_of_the_bytes_are_not_tried_again(hub, weights, small, status):
    hub.always_body = Fault(status)
    failure(weights(), small, AccessDenied if status < 404 else DownloadError)
    assert len(hub.bodies()) == 1


def test_unknown_repository_revision_and_file(weights, small):
    for wrong, words in [
        (replace(small, repo="owner/other"), "no repository `owner/other`"),
        (replace(small, revision="v9"), "no revision `v9`"),
        (replace(small, name="other.gguf"), "no file `other.gguf`"),
    ]:
        error = failure(weights(), wrong, DownloadError)
        assert words in str(error)
        assert str(wrong.repo) in str(error.hint)


def test_names_that_cannot_be_meant(hub, weights, small):
    for wrong in (replace(small, repo="a b/c"), replace(small, repo="a/b/c")):
        failure(weights(), wrong, UsageProblem)
    for name in ("../x.gguf", "/x.gguf", "a/../../x.gguf", "..\\x.gguf", ""):
        failure(weights(), replace(small, name=name), UsageProblem)
    failure(weights(endpoint="ftp://127.0.0.1"), small, UsageProblem)
    assert not hub.requests


# What passes


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_what_passes_is_tried_again(hub, weights, small, status):
    hub.on_head.extend([Fault(status)] * 3)
    fetching = weights()
    fetching.fetch(small)
    assert len(fetching.reporter.notes) == 3


def test_the_server_may_say_when(hub, weights, small):
    hub.on_head.append(Fault(503, retry_after=1))
    began = time.monotonic()
    weights().fetch(small)
    assert time.monotonic() - began >= 1


def test_nobody_waits_an_hour(hub, weights, small):
    hub.always_head = Fault(429, retry_after=3600)
    error = failure(weights(), small, HubUnreachable)
    assert "(HTTP 429)" in str(error)
    assert len(hub.requests) == 1


def test_http_gets_own_retries_count(hub, weights, small, reporter):
    hub.on_body.append(Fault(429, retry_after=0))
    weights().fetch(small)
    assert len(hub.bodies()) == 2
    assert len([request for request in hub.requests if request.method == "HEAD"]) == 1
    assert any("HTTP Error 429 thrown while requesting GET" in note for note in reporter.notes)


@pytest.mark.parametrize("status", [408, 429])
def test_what_http_get_has_retried_is_not_retried_again(small, status):
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for method, seconds in (("GET", None), ("HEAD", 7.0)):
        response = httpx2.Response(
            status, request=httpx2.Request(method, "https://hub/x"), headers={"Retry-After": "7"}
        )
        with pytest.raises(HubUnreachable) as caught, hub_errors.door(small, "https://hub"):
            raise HfHubHTTPError("busy", response=response)
        assert hub_errors.patience(caught.value) == seconds


@pytest.mark.parametrize("status", [500, 503])
def test_what_does_not_pass_ends(hub, weights, small, status):
    hub.always_body = Fault(status)
    error = failure(weights(), small, HubUnreachable)
    assert f"(HTTP {status})" in str(error)
    assert error.exit_code == 3
    assert len(hub.bodies()) == 5


def test_nothing_answers(weights, small):
    error = failure(weights(endpoint="http://127.0.0.1:9"), small, HubUnreachable)
    assert str(error) == (
        "`mmproj.gguf` cannot be fetched from `http://127.0.0.1:9`: connection refused"
    )


def test_an_address_with_a_password_is_not_shown(weights, small):
    error = failure(weights(endpoint="http://me:geheim@127.0.0.1:9/x"), small, HubUnreachable)
    assert "`http://127.0.0.1:9`" in str(error)
    error = failure(weights(endpoint="me:geheim@127.0.0.1"), small, UsageProblem)
    assert "`127.0.0.1` is not the address of a Hub" in str(error)


def test_reasons_are_told_apart(small):
    import httpx2

    reasons = {
        ssl.SSLCertVerificationError("self-signed"): "its certificate is not trusted here",
        socket.gaierror(-2, "Name or service not known"): "the host name cannot be resolved",
        OSError(errno.ENETUNREACH, "Network is unreachable"): "network is unreachable",
    }
    for inner, words in reasons.items():
        with pytest.raises(HubUnreachable) as caught, hub_errors.door(small, "https://hub"):
            raise httpx2.ConnectError("secret") from inner
        assert str(caught.value).endswith(f"from `https://hub`: {words}")
        pointless = isinstance(inner, ssl.SSLCertVerificationError)
        assert (hub_errors.patience(caught.value) is None) == pointless
    with pytest.raises(HubUnreachable, match="no answer in time"), hub_errors.door(small, "hub"):
        raise httpx2.ReadTimeout("secret")


# The disk


def test_space_is_looked_at_first(hub, weights, small):
    hub.always_head = Fault(size=10**18)
    error = failure(weights(), unpinned(small), NotEnoughSpace)
    assert "`mmproj.gguf` needs 1000000000.0 GB in `" in str(error)
    assert "LLAVA_OLLAMA_CACHE" in str(error.hint)
    assert not hub.bodies()


def test_a_disk_that_fills_up(tmp_path):
    with pytest.raises(NotEnoughSpace) as caught, disk(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == f"no space is left in `{tmp_path}`"


def test_a_file_system_that_refuses_to_go_on(hub, weights, big, tmp_path):
    downloads = tmp_path / "downloads"
    environment = {"HF_ENDPOINT": hub.url}
    with start_fetch(big, downloads, environment=environment, largest=35 * MB) as process:
        kind, name, message, hint = last(process)
    assert (kind, name) == ("error", "DownloadError")
    assert message == f"`{downloads}` cannot be used: file too large"
    assert "LLAVA_OLLAMA_CACHE" in hint
    hub.served = 0
    check(hub, weights().fetch(big), big)
    assert hub.served == big.size - 35 * MB


def test_a_folder_that_is_none(weights, small, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    error = failure(weights(downloads=tmp_path / "file"), small, DownloadError)
    assert str(error) == f"`{tmp_path / 'file'}` cannot be used: file exists"


# huggingface_hub's own variables


def test_the_token_goes_to_the_hub_only(hub, small, tmp_path):
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_geheim"}
    with start_fetch(small, tmp_path / "downloads", environment=environment) as process:
        assert last(process)[0] == "done"
    assert {request.authorization for request in hub.requests if request.server == "hub"} == {
        "Bearer hf_geheim"
    }
    assert {request.authorization for request in hub.bodies()} == {None}


def test_offline_mode(hub, small, tmp_path):
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}
    with start_fetch(small, tmp_path / "downloads", environment=environment) as process:
        kind, name, message, _ = last(process)
    assert (kind, name) == ("error", "HubUnreachable")
    assert "`HF_HUB_OFFLINE`" in message
    assert not hub.requests


# The door

IGNORED = {
    # Raised by parts of huggingface_hub that are not called here.
    "InferenceTimeoutError",
    "SSEError",
    "TextGenerationError",
    # Always made into an HfHubHTTPError by huggingface_hub.
    "HTTPStatusError",
    # Mistakes in a program, not in the world: they keep their traceback.
    "CookieConflict",
    "StreamError",
}


def test_every_error_of_the_http_libraries_has_a_translation():
    import httpx2
    import huggingface_hub.errors

    theirs = [
        kind
        for module in (httpx2, huggingface_hub.errors)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception) and not issubclass(kind, Warning)
    ]
    ours = [
        kind
        for kind in theirs
        if kind.__module__.startswith("httpx2")
        or issubclass(kind, httpx2.HTTPError | ConnectionError)
    ]
    unmapped = {
        kind.__name__
        for kind in ours
        if not issubclass(kind, hub_errors.known())
        and not any(base.__name__ in IGNORED for base in kind.__mro__)
    }
    assert unmapped == {"HTTPError", "RequestError", "TransportError", "ProtocolError"}, (
        "only the abstract bases may be without a translation"
    )


def test_no_translation_repeats_foreign_words(small):
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for kind, translate in hub_errors.translations().items():
        secret = "https://cdn/x?Signature=5ecret"
        if issubclass(kind, HfHubHTTPError):
            request = httpx2.Request("GET", secret)
            exc: Exception = kind(secret, response=httpx2.Response(418, request=request))
        else:
            exc = kind(secret)
        error = translate(exc, small, "https://hub")
        assert SIGNATURE not in f"{error} {error.hint}"
        assert error.hint


def test_subclasses_are_translated_before_their_bases():
    kinds = deque(hub_errors.translations())
    while kinds:
        first = kinds.popleft()
        assert not [kind for kind in kinds if issubclass(kind, first)]


@pytest.mark.parametrize("name", ["repo", "revision", "name"])
def test_what_is_no_text_is_not_asked_for(weights, small, name):
    with pytest.raises(UsageProblem, match="not UTF-8"):
        weights().fetch(replace(small, **{name: "o/\udcff"}))


@pytest.mark.parametrize("size", [1 << 63, 10**400])
def test_a_size_that_no_file_has_is_not_the_hub_s(hub, small, weights, size):
    hub.always_head = Fault(size=size)
    with pytest.raises(DownloadError, match="not as a Hub does"):
        weights().fetch(replace(small, size=None))
    assert gigabytes(10**400)


def test_room_is_looked_for_where_no_size_is_told(tmp_path, reporter):
    def full() -> None:
        raise NotEnoughSpace("no room")

    reporter.started("x")
    file = HashedFile(tmp_path / "x", "x", task="x", reporter=reporter)
    file.check_room = full
    with pytest.raises(NotEnoughSpace):
        file.write(b"a")
    file.limit = 1
    file.write(b"a")
    file.close()


def test_retry_after_is_seconds_or_a_date():
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    assert 50 < hub_errors._seconds(in_a_minute) <= 60
    for text, seconds in {"7": 7, "\u00b2": 0, "": 0, "soon": 0, formatdate(0): 0}.items():
        assert hub_errors._seconds(text) == seconds
