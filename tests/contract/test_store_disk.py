"""What only a store on disk can do: be damaged, filled, fought over, left behind by a newer version."""

from __future__ import annotations

import errno
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import apsw
import pytest

from hermes_runtime.errors import BadInput, Busy, Damaged, Exhausted, HermesError, NotFound, Unsupported
from hermes_runtime.store import BlobState, Digest, Event, ResultKey, fsck
from hermes_runtime.store.disk import ROW_BYTES_MAX, DiskStore
from hermes_runtime.store.files import WHOLE_BYTES_MAX, BlobFiles
from hermes_runtime.store.schema import MIGRATIONS

SMALL, LARGE, HUGE = 1000, ROW_BYTES_MAX + 1000, WHOLE_BYTES_MAX + 1000
STEPS_OF_A_ROW = ["before commit"]
STEPS_OF_A_FILE = ["temp made", "temp written", "temp synced", "before rename", "renamed", "folder synced"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[DiskStore]:
    with closing(DiskStore(folder)) as opened:
        yield opened


def blob(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def file_of(folder: Path, digest: Digest) -> Path:
    return folder / "objects" / digest.hex[:2] / digest.hex[2:]


def flip_a_bit(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def flip_a_bit_of_row(folder: Path, content: bytes) -> None:
    """In the database file of a closed store, in the middle of `content`."""
    database = folder / "store.db"
    part = content[len(content) // 2 :][:64]
    at = database.read_bytes().index(part)
    flip_a_bit(database, at)


def first_event(digests: tuple[Digest, ...] = (), payload: bytes = b"payload") -> Event:
    return Event(
        stream="s",
        type="t",
        payload=payload,
        previous=b"",
        written_at=datetime(2026, 1, 1, tzinfo=UTC),
        digests=digests,
    )


class Fault:
    """Fails at one step of a write, once it is armed."""

    def __init__(self, number: int = errno.ENOSPC) -> None:
        self.step = ""
        self.number = number

    def __call__(self, step: str) -> None:
        if step == self.step:
            raise OSError(self.number, "made to fail")


# Damage


@pytest.mark.parametrize("size_bytes", [LARGE, HUGE])
@pytest.mark.parametrize("read", [DiskStore.get, lambda store, digest: list(store.get_pieces(digest))])
def test_a_flipped_bit_in_a_file_is_an_error_and_a_quarantine(
    store: DiskStore, folder: Path, size_bytes: int, read: Callable[[DiskStore, Digest], object]
):
    digest = store.put(blob(size_bytes))
    flip_a_bit(file_of(folder, digest), size_bytes - 1)
    with pytest.raises(Damaged, match=r"never returned; put the right bytes again"):
        read(store, digest)
    assert not file_of(folder, digest).exists()
    assert (folder / "quarantine" / digest.hex).stat().st_size == size_bytes
    assert store.stat([digest])[0].state is BlobState.QUARANTINED
    with pytest.raises(Damaged):
        store.get(digest, offset=0, length=1)


@pytest.mark.parametrize("size_bytes", [64, SMALL, ROW_BYTES_MAX])
def test_a_flipped_bit_in_a_row_is_an_error_and_a_quarantine(folder: Path, size_bytes: int):
    with closing(DiskStore(folder)) as store:
        digest = store.put(blob(size_bytes))
    flip_a_bit_of_row(folder, blob(size_bytes))
    with closing(DiskStore(folder)) as store:
        for _ in range(2):
            with pytest.raises(Damaged):
                store.get(digest)
        assert store.stat([digest])[0].state is BlobState.QUARANTINED


@pytest.mark.parametrize("size_bytes", [LARGE, HUGE])
def test_a_range_of_a_file_is_not_returned_if_another_part_is_damaged(
    store: DiskStore, folder: Path, size_bytes: int
):
    digest = store.put(blob(size_bytes))
    assert store.get(digest, offset=70, length=9) == blob(size_bytes)[70:79]
    flip_a_bit(file_of(folder, digest), size_bytes - 1)
    with pytest.raises(Damaged):
        store.get(digest, offset=70, length=9)


def test_a_huge_blob_reads_back_in_pieces_and_in_ranges(store: DiskStore):
    data = blob(HUGE)
    digest = store.put_pieces(data[start : start + 999_983] for start in range(0, HUGE, 999_983))
    assert b"".join(store.get_pieces(digest)) == data
    assert store.get(digest, offset=HUGE - 2_000_000, length=1_500_000) == data[-2_000_000:-500_000]


@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
def test_putting_the_right_bytes_again_heals(folder: Path, size_bytes: int):
    data = blob(size_bytes)
    with closing(DiskStore(folder)) as store:
        digest = store.put(data)
    if size_bytes == SMALL:
        flip_a_bit_of_row(folder, data)
    else:
        flip_a_bit(file_of(folder, digest), 5)
    with closing(DiskStore(folder)) as store:
        with pytest.raises(Damaged):
            store.get(digest)
        store.put(data)
        assert store.get(digest) == data
        assert store.stat([digest])[0].state is BlobState.PRESENT
        assert not list((folder / "quarantine").iterdir())


@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
def test_putting_heals_damage_that_nobody_has_seen_yet(folder: Path, size_bytes: int):
    data = blob(size_bytes)
    with closing(DiskStore(folder)) as store:
        digest = store.put(data)
    if size_bytes == SMALL:
        flip_a_bit_of_row(folder, data)
    else:
        flip_a_bit(file_of(folder, digest), 5)
    with closing(DiskStore(folder)) as store:
        store.put(data)
        assert store.get(digest) == data


def test_a_missing_file_is_an_error_and_putting_it_again_heals(store: DiskStore, folder: Path):
    digest = store.put(blob(LARGE))
    file_of(folder, digest).unlink()
    with pytest.raises(Damaged, match="put the right bytes again"):
        store.get(digest)
    with pytest.raises(Damaged):
        store.lease("mine", datetime(2100, 1, 1, tzinfo=UTC), [digest])
    store.put(blob(LARGE))
    assert store.get(digest) == blob(LARGE)


def test_a_flipped_bit_in_an_event_or_a_result_is_an_error(folder: Path):
    key = ResultKey(run="r", instance="i", arm="A")
    with closing(DiskStore(folder)) as store:
        store.append(first_event(payload=b"event" * 20))
        store.record_result(key, b"result" * 20)
    flip_a_bit_of_row(folder, b"event" * 20)
    flip_a_bit_of_row(folder, b"result" * 20)
    with closing(DiskStore(folder)) as store:
        for read in (
            lambda: list(store.events()),
            lambda: list(store.events(stream_prefix="s")),
            lambda: list(store.results("r")),
            lambda: store.record_result(key, b"new"),
        ):
            with pytest.raises(Damaged, match="restore the folder from a copy"):
                read()


def test_a_database_that_is_none_is_damaged(folder: Path):
    DiskStore(folder).close()
    (folder / "store.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(Damaged, match="fsck"):
        DiskStore(folder)


# Full disk and other faults


@pytest.mark.parametrize(
    ("size_bytes", "step"),
    [(SMALL, step) for step in STEPS_OF_A_ROW] + [(LARGE, step) for step in STEPS_OF_A_FILE + STEPS_OF_A_ROW],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_full_at_any_step_leaves_nothing_and_reads_go_on(
    folder: Path, size_bytes: int, step: str, number: int
):
    fault = Fault(number)
    with closing(DiskStore(folder, at=fault)) as store:
        old = store.put(b"old")
        fault.step = step
        with pytest.raises(Exhausted, match=rf"{folder} is full: \d+ bytes needed, \d+ free"):
            store.put(blob(size_bytes))
        digest = Digest.of(blob(size_bytes))
        assert store.stat([digest])[0].state is BlobState.NEVER_SEEN
        assert not list((folder / "tmp").iterdir())
        assert store.get(old) == b"old"
        assert not [path for path in (folder / "objects").rglob("*") if path.is_file()]
        fault.step = ""
        assert store.get(store.put(blob(size_bytes))) == blob(size_bytes)


def test_a_failing_disk_is_an_error_that_says_so(folder: Path):
    fault = Fault(errno.EIO)
    with closing(DiskStore(folder, at=fault)) as store:
        fault.step = "temp synced"
        with pytest.raises(HermesError, match="the disk answers"):
            store.put(blob(LARGE))


def test_an_event_and_a_result_that_find_the_disk_full_are_not_there(folder: Path):
    fault = Fault()
    key = ResultKey(run="r", instance="i", arm="A")
    with closing(DiskStore(folder, at=fault)) as store:
        fault.step = "before commit"
        with pytest.raises(Exhausted):
            store.append(first_event())
        with pytest.raises(Exhausted):
            store.record_result(key, b"result")
        fault.step = ""
        assert (list(store.events()), list(store.results("r"))) == ([], [])
        assert store.append(first_event()).sequence == 1
        assert store.record_result(key, b"result") == (True, b"result")


def test_pieces_that_fail_half_way_leave_nothing(store: DiskStore, folder: Path):
    def pieces() -> Iterator[bytes]:
        yield blob(LARGE)
        raise BadInput("the sender is gone")

    with pytest.raises(BadInput, match="the sender is gone"):
        store.put_pieces(pieces())
    assert not list((folder / "tmp").iterdir())


def test_a_damaged_blob_on_a_full_disk_is_still_damaged(folder: Path):
    fault = Fault()
    with closing(DiskStore(folder, at=fault)) as store:
        digest = store.put(blob(LARGE))
        flip_a_bit(file_of(folder, digest), 5)
        fault.step = "before commit"
        for _ in range(2):
            with pytest.raises(Damaged):
                store.get(digest)


# Owners and versions


def test_a_folder_has_one_owner_and_the_error_names_it(store: DiskStore, folder: Path):
    with pytest.raises(Busy, match=r"in use by process \d+"):
        DiskStore(folder)
    with pytest.raises(Busy):
        fsck.check(folder)
    store.close()
    DiskStore(folder).close()


def test_a_folder_of_a_newer_version_is_refused_untouched(folder: Path):
    with closing(DiskStore(folder)) as store:
        store.put(b"x")
    newer = len(MIGRATIONS) + 6
    with closing(sqlite3.connect(folder / "store.db")) as database:
        database.execute(f"PRAGMA user_version = {newer}")
    for opening in (DiskStore, fsck.check):
        with pytest.raises(
            Unsupported, match=rf"schema version {newer}.*up to {len(MIGRATIONS)}: use the newer"
        ):
            opening(folder)


def test_a_database_of_another_program_is_refused(folder: Path):
    folder.mkdir()
    with closing(sqlite3.connect(folder / "store.db")) as database:
        database.execute("CREATE TABLE theirs (x)")
    with pytest.raises(Unsupported, match="not a store's"):
        DiskStore(folder)


def test_the_folder_is_private_even_if_it_was_not(folder: Path):
    folder.mkdir(mode=0o755)
    DiskStore(folder).close()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_opening_deletes_what_a_killed_writer_left_half_done(folder: Path):
    DiskStore(folder).close()
    (folder / "tmp" / "left").write_bytes(b"half")
    orphan = file_of(folder, Digest.of(b"orphan"))
    orphan.write_bytes(b"orphan")
    with closing(DiskStore(folder)) as store:
        assert not list((folder / "tmp").iterdir())
        assert store.collect_garbage(datetime.now(UTC)) == (0, 0)
        assert not orphan.exists()


def test_a_closed_store_says_so(folder: Path):
    store = DiskStore(folder)
    store.close()
    with pytest.raises(HermesError, match="closed: open it again"):
        store.put(b"x")
    with pytest.raises(HermesError, match="closed: open it again"):
        store.stat([])


def test_the_settings_that_make_a_commit_durable_are_on(store: DiskStore, folder: Path):
    store.put(b"x")
    assert (folder / "store.db-wal").exists()
    writing = store._writer._connection
    assert writing.pragma("journal_mode") == "wal"
    assert writing.pragma("synchronous") == 2
    assert apsw.sqlite_lib_version() >= "3.51.3"


# Threads


def test_threads_put_read_and_collect_at_the_same_time(folder: Path):
    failures: list[BaseException] = []
    with closing(DiskStore(folder)) as store:

        def work(seed: int) -> None:
            rng = random.Random(seed)
            try:
                for number in range(30):
                    data = rng.choice([b"same", b"large" * 14_000, b"%d %d" % (seed, number)])
                    digest = store.put(data, lease=f"lease {seed}")
                    assert store.get(digest) == data
                    if number % 10 == 9:
                        store.drop_lease(f"lease {seed}")
                        store.collect_garbage(datetime.now(UTC))
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
    assert fsck.check(folder).is_sound


def test_garbage_is_not_collected_between_a_file_and_its_row(folder: Path):
    landed, may_go = threading.Event(), threading.Event()

    def at(step: str) -> None:
        if step == "folder synced":
            landed.set()
            assert may_go.wait(20)

    with closing(DiskStore(folder, at=at)) as store:
        putting = threading.Thread(target=store.put, args=(blob(LARGE),))
        collecting = threading.Thread(target=store.collect_garbage, args=(datetime.now(UTC),))
        putting.start()
        assert landed.wait(20)
        collecting.start()
        while collecting.is_alive() and not store._gate._wanting_alone:
            pass
        may_go.set()
        putting.join()
        collecting.join()
        assert store.get(Digest.of(blob(LARGE))) == blob(LARGE)


def test_changes_that_wait_together_are_committed_together(folder: Path):
    held, may_go, commits = threading.Event(), threading.Event(), []

    def at(step: str) -> None:
        if step == "committed":
            commits.append(step)
        if step == "before commit" and not held.is_set():
            held.set()
            assert may_go.wait(20)

    with closing(DiskStore(folder, at=at)) as store:
        threads = [threading.Thread(target=store.put, args=(b"%d" % number,)) for number in range(9)]
        threads[0].start()
        assert held.wait(20)
        for thread in threads[1:]:
            thread.start()
        while len(store._writer._waiting) < 8:
            pass
        may_go.set()
        for thread in threads:
            thread.join()
        assert len(commits) == 2
        assert all(store.get(Digest.of(b"%d" % number)) for number in range(9))


def test_a_change_that_fails_does_not_fail_those_that_wait_with_it(folder: Path):
    held, may_go = threading.Event(), threading.Event()
    outcomes: dict[bytes, object] = {}

    def at(step: str) -> None:
        if step == "before commit" and not held.is_set():
            held.set()
            assert may_go.wait(20)

    with closing(DiskStore(folder, at=at)) as store:

        def append(event: Event) -> None:
            try:
                outcomes[event.payload] = store.append(event).sequence
            except HermesError as error:
                outcomes[event.payload] = type(error).__name__

        threads = [threading.Thread(target=append, args=(first_event(payload=b"0"),))]
        threads[0].start()
        assert held.wait(20)
        threads.append(threading.Thread(target=append, args=(first_event(payload=b"stale"),)))
        threads.append(threading.Thread(target=store.put, args=(b"innocent",)))
        for thread in threads[1:]:
            thread.start()
        while len(store._writer._waiting) < 2:
            pass
        may_go.set()
        for thread in threads:
            thread.join()
        assert outcomes == {b"0": 1, b"stale": "StaleWriter"}
        assert store.get(Digest.of(b"innocent")) == b"innocent"


# fsck


def test_fsck_of_a_sound_store_counts_what_is_there(folder: Path):
    with closing(DiskStore(folder)) as store:
        digest = store.put(blob(LARGE))
        store.put(blob(SMALL))
        first = store.append(first_event((digest,)))
        store.append(
            Event(stream="s", type="t", payload=b"", previous=first.digest, written_at=first.event.written_at)
        )
        store.record_result(ResultKey(run="r", instance="i", arm="A"), b"result")
    report = fsck.check(folder)
    assert report == fsck.Report(
        blobs=2, blob_bytes=SMALL + LARGE, quarantined=0, events=2, results=1, orphans=0, faults=(),
        repaired=False,
    )  # fmt: skip
    assert report.is_sound


def test_fsck_finds_each_kind_of_damage_and_repair_makes_blobs_healable(folder: Path):
    key = ResultKey(run="r", instance="i", arm="A")
    with closing(DiskStore(folder)) as store:
        small, large, gone = store.put(blob(SMALL)), store.put(blob(LARGE)), store.put(blob(LARGE + 1))
        store.append(first_event(payload=b"event" * 20))
        store.record_result(key, b"result" * 20)
    flip_a_bit_of_row(folder, blob(SMALL))
    flip_a_bit_of_row(folder, b"event" * 20)
    flip_a_bit_of_row(folder, b"result" * 20)
    flip_a_bit(file_of(folder, large), 9)
    file_of(folder, gone).unlink()
    orphan = file_of(folder, Digest.of(b"orphan"))
    orphan.write_bytes(b"orphan")

    report = fsck.check(folder)
    assert not report.is_sound
    assert report.orphans == 1
    assert sorted(report.faults) == sorted(
        [
            f"blob {small}: its row does not match its digest",
            f"blob {large}: its file does not match its digest",
            f"blob {gone}: its file is missing",
            "event 1 of stream 's': its bytes do not match its digest",
            "result of (r, i, A): its bytes do not match its digest",
        ]
    )
    assert fsck.check(folder, repair=True).quarantined == 3
    after = fsck.check(folder)
    assert (len(after.faults), after.orphans) == (2, 0)
    with closing(DiskStore(folder)) as store:
        for size_bytes, digest in ((SMALL, small), (LARGE, large), (LARGE + 1, gone)):
            with pytest.raises(Damaged):
                store.get(digest)
            store.put(blob(size_bytes))
            assert store.get(digest) == blob(size_bytes)


def test_fsck_finds_an_event_that_is_gone(folder: Path):
    with closing(DiskStore(folder)) as store:
        first = store.append(first_event())
        store.append(
            Event(stream="s", type="t", payload=b"", previous=first.digest, written_at=first.event.written_at)
        )
    with closing(sqlite3.connect(folder / "store.db")) as database:
        database.execute("DELETE FROM events WHERE sequence = 1")
        database.commit()
    assert fsck.check(folder).faults == ("event 2 of stream 's': it does not follow the event before it",)


def test_fsck_of_no_store_makes_none(folder: Path):
    folder.mkdir()
    with pytest.raises(HermesError, match=r"no store\.db"):
        fsck.check(folder)
    assert not list(folder.iterdir())


def test_a_blob_collected_between_looking_and_reading_is_not_found(folder: Path):
    """Not Damaged: its row is looked at once more before it is called so."""
    with closing(DiskStore(folder)) as store:
        digest = store.put(blob(LARGE), lease="mine")
        reads = store._read(digest, 0, LARGE)
        assert reads == blob(LARGE)
        store.drop_lease("mine")
        store.collect_garbage(datetime.now(UTC))
        with pytest.raises(NotFound):
            store._read_again(digest, 0, LARGE)


def test_a_file_that_changes_between_its_two_readings_is_never_returned(folder: Path, tmp_path: Path):
    with closing(DiskStore(folder)) as store:
        digest = store.put(blob(HUGE))
    files = BlobFiles(folder, lambda step: None)
    pieces = files.read_pieces(digest, 1 << 20)
    first = next(pieces)
    flip_a_bit(file_of(folder, digest), HUGE - 1)
    assert first == blob(HUGE)[: 1 << 20]
    assert list(pieces)[-1] is None
