"""Changes to the database: one connection writes, and changes that wait together share one fsync.

Who gets the turn commits all that wait, his own among them; the others find theirs done. A change is
a function of the connection; it may run twice (a batch that fails is run again one by one, so that
one change too large for the disk does not fail its neighbours) and its error is its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import apsw

from hermes_runtime.errors import HermesError
from hermes_runtime.store.failures import translated

T = TypeVar("T")


class _Waiting(Generic[T]):
    """A change on its way: not yet done, done with a value, or failed."""

    def __init__(self, change: Callable[[apsw.Connection], T], needed_bytes: int) -> None:
        self.change = change
        self.needed_bytes = needed_bytes
        self.is_done = False
        self.error: Exception | None = None
        self.value: T | None = None

    def run(self, connection: apsw.Connection) -> None:
        """Run the change in a savepoint of its own: its error takes back this change only.

        SQLite's own errors leave: they say something about the transaction as a whole, which SQLite
        may have rolled back already.
        """
        self.error = None
        connection.execute("SAVEPOINT change")
        try:
            self.value = self.change(connection)
        except apsw.Error:
            raise
        except Exception as error:
            self.error = error
            connection.execute("ROLLBACK TO change")
        connection.execute("RELEASE change")


class Writer:
    """The one writing connection. Calls are safe from several threads."""

    def __init__(self, connection: apsw.Connection, folder: Path, at: Callable[[str], None]) -> None:
        self._connection = connection
        self._folder = folder
        self._at = at
        self._mutex = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: list[_Waiting[object]] = []

    def run(self, change: Callable[[apsw.Connection], T], *, needed_bytes: int = 0) -> T:
        """Run `change` in a transaction; durable when this returns. Its error is raised here."""
        mine = _Waiting(change, needed_bytes)
        with self._mutex:
            self._waiting.append(mine)  # type: ignore[arg-type]  # only `run` reads the value back
        with self._turn:
            while not mine.is_done:
                with self._mutex:
                    batch, self._waiting = self._waiting, []
                try:
                    self._commit(batch)
                finally:
                    with self._mutex:  # after an interrupt: what is not done waits on
                        self._waiting[:0] = [item for item in batch if not item.is_done]
        if mine.error is not None:
            raise mine.error
        return mine.value  # type: ignore[return-value]  # done without error

    def close(self) -> None:
        """Wait for the turn, then close the connection."""
        with self._turn:
            self._connection.close()

    def _commit(self, batch: list[_Waiting[object]]) -> None:
        needed_bytes = sum(item.needed_bytes for item in batch)
        try:
            with translated(self._folder, needed_bytes, self._connection):
                self._in_transaction(batch)
        except HermesError as error:
            if len(batch) > 1:
                for item in batch:
                    self._commit([item])
                return
            batch[0].error = error
        for item in batch:
            item.is_done = True

    def _in_transaction(self, batch: list[_Waiting[object]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for item in batch:
                item.run(self._connection)
            self._at("before commit")
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._at("committed")
