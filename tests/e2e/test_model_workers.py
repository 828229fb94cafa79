"""Real worker processes: killed, stopped, starved, damaged, watched for sockets."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.client import ModelClient
from hermes_runtime.models.environment import SOCKET_AUDIT
from hermes_runtime.models.instances import Event, PortableMultiInstanceManager
from hermes_runtime.models.roster import Budgets
from hermes_runtime.models.stepping import Token
from hermes_runtime.models.worker import model_of
from hermes_runtime.supervise import rpc
from tests.contract import tiny_model
from tests.contract.model_kinds import serving

PATIENCE_SECONDS = 120.0
"""What a test waits for an event before it fails; the machine may be busy."""

SLOW = "{delay_ms: 400, default: {completions: [slow and steady]}}"
QUICK = """
rules:
  - {match: poison, die: true, completions: [never]}
default: {completions: [well]}
"""


class Watch:
    """What happened, in order; `until` waits for it."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        self._events.put(event)

    def until(self, what: str) -> Event:
        while True:
            event = self._events.get(timeout=PATIENCE_SECONDS)
            self.seen.append(event)
            if event.what == what:
                return event


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


def scripted(folder: Path, script: str) -> ModelSpec:
    path = folder / "script.yaml"
    path.write_text(script)
    return ModelSpec(backend=Backend.SCRIPTED, path=path)


def transformer(folder: Path) -> ModelSpec:
    return ModelSpec(backend=Backend.TRANSFORMERS, path=folder, context_tokens=256, device="cpu", threads=1)


def asked(text: str = "def add(a, b):\n", **fields: object) -> pb.GenerateRequest:
    given = {"max_tokens": 12} | fields
    return pb.GenerateRequest(prompt=pb.Prompt(text=text), **given)  # type: ignore[arg-type]  # a table


def test_a_worker_killed_in_mid_request_changes_no_answer(tiny: Path, watch: Watch):
    request = asked(search=pb.SEARCH_SAMPLE, n=8, max_tokens=200, seed=4, trace="t")
    alone = model_of(transformer(tiny), lambda: None)
    alone.load()
    expected = alone.generate(request)
    with PortableMultiInstanceManager(observe=watch) as manager:
        manager.initialize([transformer(tiny)])
        ticket = manager.submit(request)
        os.kill(watch.until("beat").process, signal.SIGKILL)
        assert ticket.result(PATIENCE_SECONDS) == expected
        assert "SIGKILL" in watch.until("died").detail
        assert manager.describe().restarts == 1


def test_requests_that_wait_survive_the_death_of_the_worker(tmp_path: Path, watch: Watch):
    with PortableMultiInstanceManager(observe=watch) as manager:
        manager.initialize([scripted(tmp_path, SLOW)])
        tickets = [manager.submit(asked(str(number))) for number in range(3)]
        os.kill(watch.until("beat").process, signal.SIGKILL)
        for ticket in tickets:
            response = ticket.result(PATIENCE_SECONDS)
            assert isinstance(response, pb.GenerateResponse)
            assert response.completions[0].text == "slow and steady"


def test_each_death_is_seen_once(tmp_path: Path, watch: Watch):
    with PortableMultiInstanceManager(observe=watch) as manager:
        manager.initialize([scripted(tmp_path, QUICK)])
        for death in range(1, 6):
            os.kill(watch.until("loaded").process, signal.SIGKILL)
            assert manager.generate(asked(), PATIENCE_SECONDS).completions[0].text == "well"
            assert manager.describe().restarts == death
    assert sum(event.what == "died" for event in watch.seen) <= 5


def test_what_a_trace_has_read_is_remembered_over_a_restart(tmp_path: Path, watch: Watch):
    with PortableMultiInstanceManager(observe=watch) as manager:
        manager.initialize([scripted(tmp_path, QUICK)])
        first = manager.generate(asked("one two", trace="t")).usage
        os.kill(watch.until("answered").process, signal.SIGKILL)
        watch.until("died")
        second = manager.generate(asked("one two three", trace="t")).usage
    assert (first.prompt_tokens_new, first.prompt_tokens_reread) == (2, 0)
    assert (second.prompt_tokens_new, second.prompt_tokens_reread) == (1, 2)


def test_a_stopped_worker_is_found_and_replaced(tmp_path: Path, watch: Watch):
    with PortableMultiInstanceManager(budgets=Budgets(step_seconds=2), observe=watch) as manager:
        manager.initialize([scripted(tmp_path, SLOW)])
        ticket = manager.submit(asked())
        os.kill(watch.until("beat").process, signal.SIGSTOP)
        response = ticket.result(PATIENCE_SECONDS)
        assert isinstance(response, pb.GenerateResponse)
        assert response.completions[0].text == "slow and steady"
        assert "has not done a step" in watch.until("killed").detail


def test_a_poisonous_request_is_refused_while_others_are_served(tmp_path: Path):
    with PortableMultiInstanceManager(budgets=Budgets(backoff_seconds=0.01)) as manager:
        spec = scripted(tmp_path, QUICK)
        manager.initialize([spec, spec])
        poison = manager.submit(asked("poison"))
        others = [manager.submit(asked(str(number))) for number in range(10)]
        for other in others:
            response = other.result(PATIENCE_SECONDS)
            assert isinstance(response, pb.GenerateResponse)
            assert response.completions[0].text == "well"
        with pytest.raises(errors.HermesError, match="died 3 times at this request"):
            poison.result(PATIENCE_SECONDS)
        assert manager.generate(asked("x"), PATIENCE_SECONDS).completions[0].text == "well"


def test_more_requests_than_may_wait_are_refused(tmp_path: Path, watch: Watch):
    with PortableMultiInstanceManager(budgets=Budgets(queue=2), observe=watch) as manager:
        manager.initialize([scripted(tmp_path, SLOW)])
        tickets = [manager.submit(asked())]
        watch.until("sent")
        tickets += [manager.submit(asked()) for _ in range(2)]
        with pytest.raises(errors.Exhausted, match="2 requests wait"):
            manager.submit(asked())
        for ticket in tickets:
            ticket.result(PATIENCE_SECONDS)


def test_a_cancelled_request_frees_its_worker(tmp_path: Path, watch: Watch):
    script = "{delay_ms: 600000, default: {completions: [too late]}}"
    with PortableMultiInstanceManager(observe=watch) as manager:
        manager.initialize([scripted(tmp_path, script)])
        endless, waiting = manager.submit(asked()), manager.submit(asked())
        watch.until("beat")
        waiting.cancel()
        endless.cancel()
        assert watch.until("answered").number == endless.number
        with pytest.raises(errors.HermesError, match="cancelled"):
            endless.result(0)


def test_a_caller_that_waits_no_longer_cancels(tmp_path: Path, watch: Watch):
    script = "{delay_ms: 600000, default: {completions: [too late]}}"
    with PortableMultiInstanceManager(observe=watch) as manager:
        manager.initialize([scripted(tmp_path, script)])
        with pytest.raises(errors.TimedOut, match="no answer"):
            manager.generate(asked(), 0.2)
        watch.until("answered")


def test_requests_decoded_together_survive_their_workers_with_no_token_lost_doubled_or_changed(
    tiny: Path, watch: Watch
):
    requests = [
        asked(search=pb.SEARCH_SAMPLE, n=3, max_tokens=100, seed=seed, prefixes=["", "    return"])
        for seed in range(6)
    ]
    alone = model_of(transformer(tiny), lambda: None)
    alone.load()
    expected = [alone.generate(request) for request in requests]
    told: list[list[tuple[int, int]]] = [[] for _ in requests]

    def telling(own: list[tuple[int, int]]) -> Callable[[Token], None]:
        return lambda token: own.append((token.completion, token.token))

    with PortableMultiInstanceManager(observe=watch, budgets=Budgets(backoff_seconds=0.01)) as manager:
        manager.initialize([transformer(tiny)])
        tickets = [manager.submit(request, telling(own)) for request, own in zip(requests, told, strict=True)]
        for _ in range(3):
            for _ in range(10):
                at = watch.until("decoded")
            os.kill(at.process, signal.SIGKILL)
            watch.until("died")
        answers = [ticket.result(PATIENCE_SECONDS) for ticket in tickets]
        assert manager.describe().restarts == 3
    assert answers == expected
    for own, answer in zip(told, expected, strict=True):
        counts = [sum(completion == at for completion, _ in own) for at in range(6)]
        assert counts == [each.tokens for each in answer.completions]


def test_requests_are_decoded_together(tiny: Path, watch: Watch):
    with PortableMultiInstanceManager(observe=watch) as manager:
        manager.initialize([transformer(tiny)])
        tickets = [
            manager.submit(asked(search=pb.SEARCH_SAMPLE, seed=seed, max_tokens=200)) for seed in range(4)
        ]
        for ticket in tickets:
            ticket.result(PATIENCE_SECONDS)
    while not watch.seen or watch.seen[-1].what != "answered":
        watch.until("answered")
    decoded = {event.number for event in watch.seen if event.what == "decoded"}
    assert decoded == {ticket.number for ticket in tickets}


def test_a_cancelled_request_leaves_those_beside_it_alone(tiny: Path, watch: Watch):
    with PortableMultiInstanceManager(observe=watch) as manager:
        manager.initialize([transformer(tiny)])
        kept = asked(search=pb.SEARCH_SAMPLE, seed=1, max_tokens=150)
        expected = manager.generate(kept)
        endless = manager.submit(asked(search=pb.SEARCH_SAMPLE, n=500, seed=2, max_tokens=200))
        beside = manager.submit(kept)
        while watch.until("decoded").number != endless.number:
            pass
        endless.cancel()
        assert beside.result(PATIENCE_SECONDS) == expected


def test_a_worker_that_has_done_enough_is_replaced_while_it_works_on(tmp_path: Path, watch: Watch):
    with PortableMultiInstanceManager(budgets=Budgets(recycle_requests=2), observe=watch) as manager:
        manager.initialize([scripted(tmp_path, QUICK)])
        first = watch.until("loaded").process
        for number in range(3):
            assert manager.generate(asked(str(number)), PATIENCE_SECONDS).completions[0].text == "well"
        retired = watch.until("retired")
        assert retired.process == first
        assert "code 0" in watch.until("died").detail
        assert manager.generate(asked("after"), PATIENCE_SECONDS).completions[0].text == "well"
        assert manager.describe().restarts == 0


def test_many_threads_get_their_own_answers(tiny: Path):
    with PortableMultiInstanceManager() as manager:
        manager.initialize([transformer(tiny)])
        requests = [asked(search=pb.SEARCH_SAMPLE, seed=number) for number in range(12)]
        expected = [manager.generate(request) for request in requests]
        found: dict[int, pb.GenerateResponse] = {}

        def ask(number: int) -> None:
            found[number] = manager.generate(requests[number])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[number] for number in range(12)] == expected


def test_shutdown_lets_what_was_taken_end(tmp_path: Path):
    manager = PortableMultiInstanceManager()
    manager.initialize([scripted(tmp_path, SLOW)])
    tickets = [manager.submit(asked()) for _ in range(2)]
    manager.shutdown(drain=True)
    assert all(ticket.future.result(0) for ticket in tickets)
    with pytest.raises(errors.PeerLost, match="shutting down"):
        manager.submit(asked())


def test_shutdown_without_draining_refuses_what_was_taken(tmp_path: Path, watch: Watch):
    manager = PortableMultiInstanceManager(observe=watch)
    manager.initialize([scripted(tmp_path, "{delay_ms: 600000, default: {completions: [a]}}")])
    tickets = [manager.submit(asked()) for _ in range(2)]
    process = watch.until("beat").process
    manager.shutdown(drain=False)
    for ticket in tickets:
        with pytest.raises(errors.PeerLost, match="shut down"):
            ticket.result(0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_worker_ends_with_its_supervisor(tmp_path: Path):
    spec = scripted(tmp_path, "{delay_ms: 600000, default: {completions: [a]}}")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from hermes.model.v1 import model_pb2 as pb\n"
        "from hermes_runtime.models import Backend, ModelSpec\n"
        "from hermes_runtime.models.instances import PortableMultiInstanceManager\n"
        "told = lambda event: print(event.what, event.process, flush=True)\n"
        "manager = PortableMultiInstanceManager(observe=told)\n"
        "manager.initialize([ModelSpec(backend=Backend.SCRIPTED, path=Path(sys.argv[1]))])\n"
        "manager.generate(pb.GenerateRequest(prompt=pb.Prompt(text='x'), max_tokens=1))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", program, str(spec.path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = next(int(line.split()[1]) for line in parent.stdout if line.startswith("beat"))
        watched = os.pidfd_open(worker)
        parent.kill()
        parent.wait()
    try:
        gone, _, _ = select.select([watched], [], [], PATIENCE_SECONDS)
        assert gone
    finally:
        os.close(watched)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def changed(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        pytest.param(changed, errors.Damaged, "model.safetensors", id="a changed byte"),
        pytest.param(
            lambda folder: (folder / "config.json").unlink(),
            errors.NotFound,
            "config.json",
            id="a missing file",
        ),
        pytest.param(
            lambda folder: (folder / "modeling.py").write_text(""),
            errors.Damaged,
            "modeling.py",
            id="an extra",
        ),
        pytest.param(
            lambda folder: (folder / "pytorch_model.bin").write_bytes(b""),
            errors.Unsupported,
            "pytorch_model.bin",
            id="a pickle",
        ),
    ],
)
def test_a_spoiled_model_is_refused_before_it_is_loaded(copy: Path, spoil, error, says):
    spoil(copy)
    manager = PortableMultiInstanceManager()
    with pytest.raises(error, match=says):
        manager.initialize([transformer(copy)])


def test_a_load_and_a_generate_open_no_socket_but_unix_ones(tiny: Path, tmp_path: Path, watch: Watch):
    audit = tmp_path / "sockets"
    with PortableMultiInstanceManager(
        observe=watch, environment=os.environ | {SOCKET_AUDIT: str(audit)}
    ) as manager:
        manager.initialize([transformer(tiny)])
        process = watch.until("loaded").process
        assert manager.generate(asked()).completions
        assert manager.score(pb.ScoreRequest(prompt=pb.Prompt(text="x"), continuations=["y"])).logprobs
        assert json.loads(audit.with_name(f"sockets.{process}").read_text()) == {"total": 0}


def test_the_socket_audit_sees_a_look_up_and_a_connection(tmp_path: Path):
    program = (
        "import contextlib, socket, sys\nfrom pathlib import Path\n"
        "from hermes_runtime.models.worker import count_socket_events\n"
        "count_socket_events(Path(sys.argv[1]))\n"
        "one, other = socket.socketpair()\n"
        "with contextlib.suppress(OSError): socket.getaddrinfo('localhost', 1)\n"
        "with contextlib.suppress(OSError), socket.socket() as tcp: tcp.connect(('127.0.0.1', 1))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    file = tmp_path / "sockets"
    subprocess.run([sys.executable, "-c", program, str(file)], check=True, env=environment)
    counts = json.loads(file.read_text())
    assert counts["socket.getaddrinfo"] >= 1
    assert counts["socket.connect"] == 1
    assert counts["total"] >= 3


@pytest.mark.parametrize("module", ["client", "service", "instances", "scripted", "worker", "tree"])
def test_the_callers_side_does_not_import_torch(module: str):
    program = (
        f"import sys, hermes_runtime.models.{module}\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    )
    assert told.stdout.strip() == "[]"


# Over gRPC.


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "run" / "model.sock"


async def test_the_service_waits_for_the_model_and_counts_the_cost(tmp_path: Path, socket: Path):
    with serving(socket, scripted(tmp_path, QUICK)) as process:
        async with ModelClient(socket) as client:
            await client.wait_until_ready(PATIENCE_SECONDS)
            request = asked()
            response, cost = await client.generate(request)
            assert response.completions[0].text == "well"
            assert cost.request_bytes == rpc.message_bytes(request)
            assert cost.response_bytes == rpc.message_bytes(response)
            assert (cost.method, cost.tries) == ("Generate", 1)
            assert cost.seconds > 0
        process.terminate()
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 0


async def test_a_call_that_is_cancelled_frees_the_model(tmp_path: Path, socket: Path):
    script = "{rules: [], delay_ms: 1500, default: {completions: [late]}}"
    with serving(socket, scripted(tmp_path, script)):
        async with ModelClient(socket) as client:
            await client.wait_until_ready(PATIENCE_SECONDS)
            with pytest.raises(errors.TimedOut):
                await client.generate(asked(), timeout_seconds=0.2)
            response, _ = await client.generate(asked())
            assert response.completions[0].text == "late"


async def test_errors_keep_their_class_over_the_wire(tmp_path: Path, socket: Path):
    with serving(socket, scripted(tmp_path, QUICK)):
        async with ModelClient(socket) as client:
            await client.wait_until_ready(PATIENCE_SECONDS)
            with pytest.raises(errors.ContextTooShort, match="context is 256"):
                await client.generate(asked(max_tokens=300))
            with pytest.raises(errors.HermesError, match="died 3 times"):
                await client.generate(asked("poison"))
            described, _ = await client.describe()
            assert described.restarts == 3


async def test_a_client_without_a_service_says_whom_it_cannot_reach(tmp_path: Path):
    async with ModelClient(tmp_path / "none.sock", tries=2, wait_seconds=0.01) as client:
        with pytest.raises(errors.PeerLost, match=r"none\.sock, after 2 tries of Describe"):
            await client.describe()


async def test_a_service_whose_model_is_spoiled_ends_with_its_error(copy: Path, socket: Path):
    changed(copy)
    with serving(socket, transformer(copy)) as process:
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 1
