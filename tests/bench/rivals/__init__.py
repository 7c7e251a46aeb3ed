"""Other programs that the batch is measured against, in an environment of their own.

`make rivals` installs them (`.venv/rivals`, a gigabyte). Each script is run there as a process,
knows nothing of us, and prints a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent.parent
PYTHON = ROOT / ".venv" / "rivals" / "bin" / "python"
PATIENCE = 600.0


def run(script: str, *arguments: str) -> dict[str, Any]:
    """Run `script` and return what it prints.

    Raises:
        FileNotFoundError: `make rivals` was not run.
    """
    if not PYTHON.exists():
        raise FileNotFoundError("the rivals are not installed; run `make rivals`")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            [PYTHON, Path(__file__).with_name(f"{script}.py"), *arguments],
            env=_environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said, complained = process.communicate(timeout=PATIENCE)
        finally:
            # Some of Ray's processes outlive the one that started them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
    try:
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
    except (IndexError, ValueError):
        raise ChildProcessError(
            f"{script} ended with {process.returncode}: {complained[-2000:]}"
        ) from None
    return found


def _environment(home: str) -> dict[str, str]:
    # Ray writes into its HOME and calls home unless it is told not to.
    return {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
