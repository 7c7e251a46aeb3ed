"""Runs a daemon for as long as somebody holds the other end of its standard input.

A program of its own, since a test run may be killed, or be ended by a timeout of pytest's, which
leaves no time to clean up. Whatever the end, nothing that it started is left.

    python keeper.py PROGRAM
"""

import os
import signal
import subprocess
import sys
import threading

STOP = 10.0
"""Seconds that a daemon may take to end by itself."""


def keep(program: str) -> None:
    """Start `program serve`, and end it when standard input is closed."""
    daemon = subprocess.Popen([program, "serve"], stdin=subprocess.DEVNULL)  # noqa: S603 - asked for
    threading.Thread(target=_follow, args=(daemon,), daemon=True).start()
    sys.stdin.buffer.read()
    daemon.terminate()
    _follow(daemon, STOP)


def _follow(daemon: "subprocess.Popen[bytes]", patience: float | None = None) -> None:
    """End with the daemon, and with all that it has started."""
    try:
        daemon.wait(patience)
    except subprocess.TimeoutExpired:
        daemon.kill()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)  # the keeper's own, which is a group of its own
    os._exit(1)


if __name__ == "__main__":
    keep(sys.argv[1])
