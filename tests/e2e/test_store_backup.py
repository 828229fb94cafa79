"""A backup of a store that goes on serving, and what is restored from it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hermes_runtime.errors import BadInput, Busy, Damaged, NotFound
from hermes_runtime.store import BlobState, Digest, Event, ResultKey
from hermes_runtime.store.backup import backup, door, read_manifest, restore
from hermes_runtime.store.client import StoreClient
from hermes_runtime.store.disk import DiskStore
from hermes_runtime.store.fsck import check
from tests.e2e.conftest import environment, hermes, hermes_command

LARGE = 100_000


def started(folder: Path, socket: Path) -> subprocess.Popen[bytes]:
    command = hermes_command("store", "serve", "--folder", folder, "--socket", socket)
    return subprocess.Popen(command, env=environment())


@asynccontextmanager
async def served(folder: Path, socket: Path) -> AsyncIterator[StoreClient]:
    """A store in a process of its own, and a client of it."""
    with started(folder, socket) as process:
        try:
            async with StoreClient(socket) as client:
                await client.ready(timeout_seconds=30)
                yield client
        finally:
            process.terminate()


def blob(number: int, size_bytes: int = LARGE) -> bytes:
    return f"{number:08d}".encode() * (size_bytes // 8)


async def append(client: StoreClient, stream: str, previous: bytes, digest: Digest) -> bytes:
    event = Event(
        stream=stream,
        type="t",
        payload=b"p",
        previous=previous,
        written_at=datetime.now(UTC),
        digests=(digest,),
    )
    return (await client.append(event)).digest


async def test_all_that_was_acknowledged_before_a_backup_is_in_it_though_writers_go_on(tmp_path: Path):
    acknowledged: dict[str, list[tuple[bytes, Digest]]] = {}
    enough, done = asyncio.Event(), asyncio.Event()

    async def writer(client: StoreClient, name: str) -> None:
        lines = acknowledged.setdefault(name, [])
        head, number = b"", 0
        while not done.is_set():
            number += 1
            size_bytes = LARGE if number % 2 else 800
            digest, _ = await client.put(f"{name}{number:07d}".encode() * (size_bytes // 8))
            head = await append(client, name, head, digest)
            lines.append((head, digest))
            if number == 20:
                enough.set()

    async with asyncio.timeout(60), served(tmp_path / "store", tmp_path / "s") as client:
        async with asyncio.TaskGroup() as group:
            for name in "ab":
                group.create_task(writer(client, name), name=name)
            await enough.wait()
            before = {name: list(lines) for name, lines in acknowledged.items()}
            copied = await backup(client, tmp_path / "backup")
            done.set()
        assert all(len(acknowledged[name]) > len(before[name]) for name in "ab")
    assert copied.manifest.damaged == ()
    report = restore(tmp_path / "backup", tmp_path / "again")
    assert report.is_sound
    assert report.orphans == 0
    with closing(DiskStore(tmp_path / "again")) as store:
        kept = {name: [found.digest for found in store.events(stream_prefix=name)] for name in "ab"}
        for name, lines in before.items():
            assert kept[name][: len(lines)] == [head for head, _ in lines]
            for _, digest in lines:
                assert Digest.of(store.get(digest)) == digest


async def test_a_backup_cut_off_in_the_middle_is_completed_by_the_next(tmp_path: Path):
    to = tmp_path / "backup"
    async with asyncio.timeout(60), served(tmp_path / "store", tmp_path / "s") as client:
        await client.put(blob(0))
        first = await backup(client, to)
        for number in range(1, 40):
            await client.put(blob(number))
        landed = asyncio.Event()

        class Cut(StoreClient):
            """Goes away after some blobs."""

            asked = 0

            async def get_pieces(self, digest):
                self.asked += 1
                if self.asked == 20:
                    landed.set()
                    await asyncio.Event().wait()
                async for piece in super().get_pieces(digest):
                    yield piece

        async with Cut(tmp_path / "s") as other:
            cut = asyncio.create_task(backup(other, to), name="cut")
            await landed.wait()
            cut.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cut
        assert read_manifest(to) == first.manifest
        assert restore(to, tmp_path / "old").blobs == 1
        second = await backup(client, to)
        third = await backup(client, to)
    assert first.copied == 1
    assert 0 < second.copied < 39
    assert third.copied == 0
    assert len(list(to.glob("*.db"))) == 1
    assert restore(to, tmp_path / "again").blobs == 40


async def test_nothing_is_collected_while_a_backup_reads_and_afterwards_it_is(tmp_path: Path):
    async with asyncio.timeout(60), served(tmp_path / "store", tmp_path / "s") as client:
        digest, _ = await client.put(blob(1), lease="mine")
        call = client.backup(timeout_seconds=60)
        pieces = [piece async for piece in _until_digest(call)]
        assert isinstance(pieces[-1], Digest)
        assert await client.drop_lease("mine")
        with pytest.raises(Busy, match="a backup"):
            await client.collect_garbage()
        await call.aclose()
        while True:
            try:
                blobs, _ = await client.collect_garbage()
                break
            except Busy:  # the store has not yet seen that the call has ended
                await asyncio.sleep(0.01)
        assert blobs == 1
        assert (await client.stat([digest]))[0].state is BlobState.EXPIRED


async def _until_digest(call):
    async for piece in call:
        yield piece
        if isinstance(piece, Digest):
            return


async def test_blobs_that_the_store_has_collected_leave_the_backup_too(tmp_path: Path):
    to = tmp_path / "backup"
    async with asyncio.timeout(60), served(tmp_path / "store", tmp_path / "s") as client:
        await client.put(blob(1), lease="mine")
        await client.put(blob(2))
        await backup(client, to)
        await client.drop_lease("mine")
        while True:
            try:
                await client.collect_garbage()
                break
            except Busy:
                await asyncio.sleep(0.01)
        copied = await backup(client, to)
    assert (copied.manifest.blobs, copied.copied) == (1, 0)
    assert len([path for path in (to / "objects").rglob("*") if path.is_file()]) == 1


def test_the_command_backs_up_a_store_that_is_served_and_one_that_is_not(tmp_path: Path):
    folder = tmp_path / "store"
    with closing(DiskStore(folder)) as store:
        for number in range(3):
            store.put(blob(number))
        store.record_result(ResultKey(run="r", instance="i", arm="A"), b"x")
    alone = hermes("store", "backup", "--folder", folder, "--to", tmp_path / "backup", "--json")
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout)["copied"] == 3

    async def while_served() -> subprocess.CompletedProcess[str]:
        async with asyncio.timeout(60), served(folder, tmp_path / "s") as client:
            await client.put(blob(3))
            return await asyncio.to_thread(
                hermes, "store", "backup", "--folder", folder, "--to", tmp_path / "backup", "--json"
            )

    again = asyncio.run(while_served())
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["copied"] == 1
    back = hermes("store", "restore", "--from", tmp_path / "backup", "--folder", tmp_path / "again", "--json")
    assert back.returncode == 0, back.stderr
    assert {name: json.loads(back.stdout)[name] for name in ("blobs", "results", "faults")} == {
        "blobs": 4,
        "results": 1,
        "faults": [],
    }


def backed_up(tmp_path: Path) -> Path:
    """A backup of a store with a blob in a file, one in a row, and an event."""

    async def take() -> None:
        async with asyncio.timeout(60), door(tmp_path / "store") as socket, StoreClient(socket) as client:
            await append(client, "s", b"", (await client.put(b"small"))[0])
            await backup(client, tmp_path / "backup")

    with closing(DiskStore(tmp_path / "store")) as store:
        store.put(blob(1))
    asyncio.run(take())
    return tmp_path / "backup"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["blob", "database"])
def test_a_flipped_bit_in_a_backup_is_found_at_restore_and_nothing_is_left(tmp_path: Path, what: str):
    source = backed_up(tmp_path)
    kind = "objects/*/*" if what == "blob" else "*.db"
    (file,) = source.glob(kind)
    flip(file, file.stat().st_size // 2)
    with pytest.raises(Damaged, match="does not match its digest"):
        restore(source, tmp_path / "again")
    assert list((tmp_path / "again").iterdir()) == []


def test_verifying_copies_again_what_has_changed_in_the_backup(tmp_path: Path):
    source = backed_up(tmp_path)
    (file,) = source.glob("objects/*/*")
    flip(file, 7)

    async def take(*, verify: bool) -> int:
        async with asyncio.timeout(60), door(tmp_path / "store") as socket, StoreClient(socket) as client:
            return (await backup(client, source, verify=verify)).copied

    assert asyncio.run(take(verify=False)) == 0
    assert asyncio.run(take(verify=True)) == 1
    assert restore(source, tmp_path / "again").is_sound


def test_a_blob_damaged_in_the_store_is_told_and_the_rest_is_backed_up(tmp_path: Path):
    folder = tmp_path / "store"
    with closing(DiskStore(folder)) as store:
        digests = [store.put(blob(number)) for number in range(3)]
    flip(folder / "objects" / digests[1].hex[:2] / digests[1].hex[2:], 5)
    done = hermes("store", "backup", "--folder", folder, "--to", tmp_path / "backup", "--json")
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert json.loads(done.stdout)["damaged"] == [digests[1].hex]
    report = restore(tmp_path / "backup", tmp_path / "again")
    assert (report.blobs, report.quarantined) == (2, 1)
    with closing(DiskStore(tmp_path / "again")) as store:
        assert store.put(blob(1)) == digests[1]
        assert store.get(digests[1]) == blob(1)


def test_a_store_is_restored_to_an_empty_folder_only(tmp_path: Path):
    source = backed_up(tmp_path)
    with pytest.raises(BadInput, match=r"is not empty: it holds .*store\.db"):
        restore(source, tmp_path / "store")
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    assert restore(source, tmp_path / "volume").is_sound
    with pytest.raises(NotFound, match="holds no finished backup"):
        restore(tmp_path / "volume", tmp_path / "other")


def test_a_restore_that_was_cut_off_is_no_store_until_it_is_repeated(tmp_path: Path):
    source, folder = backed_up(tmp_path), tmp_path / "again"
    restore(source, folder)
    (folder / "restore.unfinished").write_text(f"{source}\n")
    (folder / "store.db").unlink()
    with pytest.raises(Damaged, match="was cut off: run `hermes store restore` again"):
        DiskStore(folder)
    assert restore(source, folder).is_sound
    assert check(folder).is_sound


def test_leases_and_tombstones_come_back_as_they_were(tmp_path: Path):
    now = datetime.now(UTC)
    with closing(DiskStore(tmp_path / "store")) as store:
        kept, gone = store.put(blob(1), lease="kept"), store.put(blob(2), lease="gone")
        store.lease("kept", now + timedelta(days=30))
        store.drop_lease("gone")
        store.collect_garbage(now)
        before = store.stat([kept, gone])

    async def take() -> None:
        async with asyncio.timeout(60), door(tmp_path / "store") as socket, StoreClient(socket) as client:
            await backup(client, tmp_path / "backup")

    asyncio.run(take())
    restore(tmp_path / "backup", tmp_path / "again")
    with closing(DiskStore(tmp_path / "again")) as store:
        assert store.stat([kept, gone]) == before
