"""The database's tables, their versions, and how a connection is set up.

A folder carries the version of its schema; opening brings an older one up to date, step by step, and
refuses a newer one.
"""

from __future__ import annotations

from pathlib import Path

import apsw

from hermes_runtime.errors import Unsupported

APPLICATION_ID = 0x48524D53
"""`HRMS`: tells a store's database from any other."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE blobs (
      id INTEGER PRIMARY KEY,
      sha256 BLOB NOT NULL UNIQUE,
      size_bytes INTEGER NOT NULL,
      state INTEGER NOT NULL,               -- 1 present, 2 quarantined, 3 expired (a tombstone)
      ended_at_us INTEGER,                  -- of a tombstone: when the last lease ended
      data BLOB                             -- NULL: in a file, or expired
    ) STRICT;
    CREATE TABLE leases (
      id INTEGER PRIMARY KEY,
      name TEXT UNIQUE,                     -- NULL: dropped
      expires_at_us INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE holds (
      lease INTEGER NOT NULL REFERENCES leases(id),
      blob INTEGER NOT NULL REFERENCES blobs(id),
      PRIMARY KEY (lease, blob)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX holds_of_blob ON holds(blob, lease);
    CREATE TABLE events (
      sequence INTEGER PRIMARY KEY AUTOINCREMENT,
      stream TEXT NOT NULL,
      digest BLOB NOT NULL UNIQUE,
      event BLOB NOT NULL
    ) STRICT;
    CREATE INDEX events_of_stream ON events(stream, sequence);
    CREATE TABLE event_blobs (
      blob INTEGER NOT NULL REFERENCES blobs(id),
      sequence INTEGER NOT NULL REFERENCES events(sequence),
      PRIMARY KEY (blob, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE results (
      run TEXT NOT NULL,
      instance TEXT NOT NULL,
      arm TEXT NOT NULL,
      sha256 BLOB NOT NULL,
      result BLOB NOT NULL,
      PRIMARY KEY (run, instance, arm)
    ) STRICT;
    """,
)


def connect(database: Path, *, reads_only: bool = False) -> apsw.Connection:
    """A connection that waits for others, syncs every commit and enforces references."""
    connection = apsw.Connection(str(database))
    try:
        connection.set_busy_timeout(10_000)
        connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON")
        if reads_only:
            connection.execute("PRAGMA query_only = ON")
    except apsw.Error:
        connection.close()
        raise
    return connection


def migrate(
    connection: apsw.Connection, folder: Path, migrations: tuple[str, ...] = MIGRATIONS
) -> None:  # fmt: skip
    """Bring the database to the newest version; each step is one transaction.

    Raises:
        Unsupported: it was written by a newer version, or is not a store's.
    """
    version = int(connection.pragma("user_version"))
    if version > len(migrations):
        raise Unsupported(
            f"store folder {folder} was written by a newer HERMES, in schema version {version}; this one "
            f"reads versions up to {len(migrations)}: use the newer HERMES, or another folder"
        )
    is_empty = connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    if not is_empty and int(connection.pragma("application_id")) != APPLICATION_ID:
        raise Unsupported(f"the database in {folder} is not a store's: choose another folder")
    for number in range(version, len(migrations)):
        with connection:
            connection.execute(migrations[number])
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
