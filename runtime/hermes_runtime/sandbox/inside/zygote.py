"""The warm interpreter of a session: imports what tests need, then forks a keeper for every attempt.

It is single-threaded whenever it forks, runs nothing of the tested tree, and ends when the host's end
of its socket is closed. The socket keeps message borders: first the configuration, answered with
{"ready": true} or {"error": …}; then one message with three descriptors for each attempt.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys

from . import confined, keeper, namespaces


def main(descriptor: int) -> None:
    """Serve the session on `descriptor`; returns at its end."""
    control = socket.socket(fileno=descriptor)
    settings = keeper.Settings(json.loads(control.recv(1 << 20)))
    try:
        wall: keeper.Wall = (
            namespaces.Wall(settings) if settings.wall == "namespaces" else confined.Wall(settings)
        )
        wall.open_session()
        for name in settings.preload:
            importlib.import_module(name)
        pytest_inside = importlib.import_module("hermes_inside.pytest_inside")
        pytest_inside.warm_up(settings.warm_folder)
    except BaseException as error:
        control.send(json.dumps({"error": "%s: %s" % (type(error).__name__, error)}).encode()[:60000])
        return
    gc.collect()
    gc.freeze()  # what is there already is not copied for the sake of its reference counts' neighbours
    control.send(json.dumps({"ready": True, "version": sys.version.split()[0]}).encode())
    keepers: set[int] = set()
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    while True:
        ready = waiting.poll(1000)
        _reap(keepers)
        if not ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, 16, 3)
        if not message:
            break
        child = os.fork()
        if child == 0:
            control.close()
            keeper.keep(wall, settings, descriptors, pytest_inside.main)
            os._exit(0)
        keepers.add(child)
        for one in descriptors:
            os.close(one)
    while keepers:  # each sees the end of its own socket, kills its attempt and follows
        with contextlib.suppress(ChildProcessError):
            keepers.discard(os.wait()[0])
            continue
        break


def _reap(keepers: set[int]) -> None:
    """Collect ended keepers; what a killed keeper left behind comes to this process and is killed."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        if child in keepers:
            keepers.discard(child)
            if status:
                for orphan in keeper.children(os.getpid()):
                    if orphan not in keepers:
                        keeper.kill(orphan, signal.SIGKILL)
