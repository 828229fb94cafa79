"""Any sequence of calls does to the store on disk what it does to the one in memory, restarts included."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hermes_runtime.errors import HermesError
from hermes_runtime.store import Digest, Event, ResultKey
from hermes_runtime.store.disk import ROW_BYTES_MAX, DiskStore
from hermes_runtime.store.fsck import check
from hermes_runtime.store.memory import MemoryStore
from tests.contract.store_kinds import TTL_SECONDS, Clock

IN_MEMORY = Path("/dev/shm")
"""Where syncing costs nothing: this is about what is stored, not about how durably."""

BLOBS = [b"", b"a", b"b" * 1000, b"c" * ROW_BYTES_MAX, b"d" * (ROW_BYTES_MAX + 1), b"e" * 100_000]
DIGESTS = [*(Digest.of(data) for data in BLOBS), Digest.of(b"never"), Digest(Digest.of(b"a").sha256, 2)]
blobs, digests = st.sampled_from(BLOBS), st.sampled_from(DIGESTS)
leases = st.sampled_from(["default", "x", "y"])
streams = st.sampled_from(["s", "s/1", "t"])
seconds = st.integers(1, int(TTL_SECONDS * 2))


class Stores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.place = tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None)
        self.folder = Path(self.place.name) / "store"
        self.model = MemoryStore(default_ttl_seconds=TTL_SECONDS, clock=self.clock)
        self.disk = self.opened()

    def opened(self) -> DiskStore:
        return DiskStore(self.folder, default_ttl_seconds=TTL_SECONDS, clock=self.clock)

    def teardown(self) -> None:
        self.disk.close()
        assert check(self.folder).faults == ()
        self.place.cleanup()

    def same(self, call) -> None:
        """Both answer alike, or fail alike in the same words."""
        outcomes = []
        for store in (self.model, self.disk):
            try:
                outcomes.append(call(store))
            except HermesError as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]

    @rule(data=blobs, lease=leases)
    def put(self, data: bytes, lease: str) -> None:
        self.same(lambda store: store.put(data, lease=lease))

    @rule(data=blobs, told=digests, lease=leases, cut=st.integers(0, 70_000))
    def put_pieces(self, data: bytes, told: Digest, lease: str, cut: int) -> None:
        self.same(lambda store: store.put_pieces(iter((data[:cut], data[cut:])), digest=told, lease=lease))

    @rule(digest=digests, offset=st.integers(0, 1001), length=st.none() | st.integers(0, 1001))
    def get(self, digest: Digest, offset: int, length: int | None) -> None:
        self.same(lambda store: store.get(digest, offset=offset, length=length))

    @rule(name=leases, after=seconds, held=st.lists(digests, max_size=3))
    def lease(self, name: str, after: int, held: list[Digest]) -> None:
        self.same(lambda store: store.lease(name, self.clock.now + timedelta(seconds=after), held))

    @rule(name=leases)
    def drop_lease(self, name: str) -> None:
        self.same(lambda store: store.drop_lease(name))

    @rule(after=seconds)
    def time_passes(self, after: int) -> None:
        self.clock.passes(after)

    @rule()
    def collect_garbage(self) -> None:
        self.same(lambda store: store.collect_garbage(self.clock.now))

    @rule(
        stream=streams,
        payload=st.binary(max_size=2),
        named=st.lists(digests, max_size=2),
        stale=st.booleans(),
    )
    def append(self, stream: str, payload: bytes, named: list[Digest], stale: bool) -> None:
        event = Event(
            stream=stream,
            type="t",
            payload=payload,
            previous=b"" if stale else self.model.head(stream),
            written_at=self.clock.now,
            digests=tuple(named),
        )
        self.same(lambda store: store.append(event))

    @rule(instance=st.sampled_from("ij"), result=st.binary(max_size=1))
    def record_result(self, instance: str, result: bytes) -> None:
        key = ResultKey(run="r", instance=instance, arm="A")
        self.same(lambda store: store.record_result(key, result))

    @rule()
    def restart(self) -> None:
        self.disk.close()
        self.disk = self.opened()

    @invariant()
    def all_that_can_be_asked_is_answered_alike(self) -> None:
        self.same(lambda store: store.stat(DIGESTS))
        self.same(lambda store: list(store.events(stream_prefix="s", after=1)))
        self.same(lambda store: [store.head(stream) for stream in ("s", "s/1", "t")])
        self.same(lambda store: list(store.results("r")))


TestStores = Stores.TestCase
TestStores.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
