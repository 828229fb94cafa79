"""What process 1 of a container must do: hand signals on, and collect the dead.

The kernel drops signals that process 1 has no handler for, so a program that is still importing would not
end when told to; and orphans of tests become its children. So as process 1 the program goes on in a child,
and this stays behind. Elsewhere it does nothing.
"""

from __future__ import annotations

import os
import signal
from typing import Final

HANDED_ON: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def leave_process_1() -> None:
    """Returns in a child if this is process 1, else at once. Before the first thread.

    The exit code is the child's; 128 and the signal's number where a signal ended it.
    """
    if os.getpid() == 1:
        _go_on_in_a_child()


def _go_on_in_a_child() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*HANDED_ON, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait({*HANDED_ON, signal.SIGCHLD})
        if number != signal.SIGCHLD:
            os.kill(child, number)  # it is there until it is collected below
            continue
        while (dead := os.waitpid(-1, os.WNOHANG))[0]:
            if dead[0] == child:
                code = os.waitstatus_to_exitcode(dead[1])
                os._exit(code if code >= 0 else 128 - code)
