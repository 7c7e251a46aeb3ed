"""What is under a name at a daemon, and how to free it, also while others change its models.

In the instant in which one model is removed, a daemon may deny or refuse all others: it lists the
names of its manifests and then looks at each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import time
from contextlib import closing, suppress
from typing import Literal

from llava_ollama.daemon import Daemon, full_name
from llava_ollama.daemon_errors import without_file
from llava_ollama.errors import (
    DaemonError,
    LlavaOllamaError,
    ModelBroken,
    ModelNotInstalled,
    RunnerCrashed,
)
from llava_ollama.shown import Shown

State = Literal["good", "broken", "absent"]
"""A model that can be shown, one with a broken manifest, or none."""
_TRIES, _PAUSE = 5, 0.3
"""Times to look at a model that cannot be shown, and the seconds in between."""
_SOON = 5.0
"""Seconds to wait for the daemon where only a better word for an error is looked for."""
_BLINK = 0.02
"""Seconds after which the daemon no longer sees a model that another request removes."""


def state(daemon: Daemon, name: str) -> State:
    """Return whether `name` is a model that can be shown, one with a broken manifest, or none."""
    try:
        daemon.show(name)
    except ModelNotInstalled:
        return "absent"
    except ModelBroken:
        return "broken"
    return "good"


def made(daemon: Daemon, name: str) -> Shown:
    """Show a model that is there; the daemon may deny it while another one goes.

    And it reads half a manifest while a `copy` onto the name writes it.
    """
    for _ in range(_TRIES):
        with suppress(ModelNotInstalled, ModelBroken):
            return daemon.show(name)
        time.sleep(_BLINK)
    return daemon.show(name)


def patiently(daemon: Daemon, name: str) -> State:
    """Return the state of `name`; one that cannot be shown is asked for again, as that may pass."""
    for _ in range(_TRIES):
        found = state(daemon, name)
        if found == "good" or (found == "absent" and not is_listed(daemon, name)):
            return found
        time.sleep(_PAUSE)
    return state(daemon, name)


def is_listed(daemon: Daemon, name: str) -> bool:
    """Whether `name` is there, when `show` or `DELETE` denies it.

    They also do so in the instant in which another model is removed.
    """
    return full_name(name) in {model.name for model in daemon.models()}


def whole(daemon: Daemon, shown: Shown) -> bool:
    """Whether the daemon still has every file of a model; it shows also one whose file is gone."""
    return all(map(daemon.has_blob, shown.sources))


def denied(error: LlavaOllamaError, host: str, name: str) -> LlavaOllamaError:
    """Return what is wrong with a model that the daemon does not run: it may be there in part."""
    # 0.24 says "does not support chat", or its runner dies of it.
    if type(error) not in {DaemonError, ModelNotInstalled, RunnerCrashed}:
        return error
    with suppress(DaemonError), closing(Daemon(host, timeout=_SOON)) as daemon:
        if not whole(daemon, daemon.show(name)):
            return without_file(name)
    return error


def same(daemon: Daemon, one: str, other: str) -> bool:
    """Return whether two names are the same model, as far as the daemon tells."""
    try:
        shown = [dataclasses.replace(daemon.show(name), name="") for name in (one, other)]
    except (ModelNotInstalled, ModelBroken):
        return False
    return shown[0] == shown[1]


def remove(daemon: Daemon, name: str) -> None:
    """Delete `name` if it is there; an empty manifest, which `DELETE` refuses, is replaced first.

    `show` cannot be asked whether it is there: 0.24 says "not found" also of a missing blob.
    """
    for _ in range(_TRIES):
        try:
            daemon.delete(name)
        except ModelNotInstalled:
            if not is_listed(daemon, name):
                return
            time.sleep(_BLINK)
        except DaemonError:
            if state(daemon, name) != "broken":
                raise
            _write_over(daemon, name)
        else:
            return
    daemon.delete(name)


def _write_over(daemon: Daemon, name: str) -> None:
    """Give `name` a manifest that can be deleted: another model's, else a projector of nothing."""
    for listed in daemon.models():
        if state(daemon, listed.name) == "good":
            daemon.copy(listed.name, name)
            return
    digest = hashlib.sha256(_NOTHING).hexdigest()
    if not daemon.has_blob(digest):
        daemon.upload(digest, len(_NOTHING), [_NOTHING])
    for _ in daemon.create(name, files={"x.gguf": digest}, template="", system="", parameters={}):
        pass


_NOTHING = b"GGUF" + struct.pack(
    "<IQQQ20sIQ4s", 3, 0, 1, 20, b"general.architecture", 8, 4, b"clip"
)
"""A GGUF file without tensors. Called a projector, since 0.34.0 would rewrite a model."""
