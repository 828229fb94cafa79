"""A child ends when its parent does: the parent holds the other end of the child's standard input.

The kernel closes it however the parent ends, SIGKILL included, so no process of a run outlives it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """For a child without a standard input of its own: the kernel sends `number` when the parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def end_with_parent() -> None:
    """From now on, the end of standard input ends this process as SIGTERM would; 10 s later, by force."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Timer(10.0, os._exit, (1,)).start()

    threading.Thread(target=wait, name="parent", daemon=True).start()
