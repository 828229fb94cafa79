"""How much is free, from files as kernels write them; and what is said when it is too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermes_runtime import errors
from hermes_runtime.models.memory import check_room, free_bytes_of_host
from hermes_runtime.models.tensors import Stored

GIB = 2**30
WEIGHTS = [
    Stored(name="embed_tokens.weight", dtype="bfloat16", shape=(2**15, 2**14), size_bytes=GIB),
    Stored(name="layers.0.weight", dtype="bfloat16", shape=(2**16, 2**16), size_bytes=8 * GIB),
]


def written(root: Path, tree: dict[str, str]) -> Path:
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal:       32 kB\nMemAvailable:    8192 kB\nSwapFree: 1 kB\n"


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        pytest.param({}, None, id="nothing is told"),
        pytest.param({"proc/meminfo": MEMINFO}, 8192 * 1024, id="no control group"),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/pod/main\n",
                "sys/fs/cgroup/pod/main/memory.max": "max\n",
                "sys/fs/cgroup/pod/main/memory.current": "400\n",
                "sys/fs/cgroup/pod/memory.max": "1000\n",
                "sys/fs/cgroup/pod/memory.current": "700\n",
                "sys/fs/cgroup/pod/memory.stat": "anon 300\nactive_file 100\ninactive_file 200\n",
            },
            600,
            id="the limit of a group above, less what it cannot give back",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "90000000\n",
                "sys/fs/cgroup/memory.current": "5\n",
            },
            8192 * 1024,
            id="a group with more room than the host has",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "900\n",
                "sys/fs/cgroup/memory/x/memory.stat": "total_inactive_file 50\ntotal_active_file 0\n",
            },
            150,
            id="the first version of control groups",
        ),
    ],
)
def test_what_is_free_is_the_least_that_anything_leaves(
    tmp_path: Path, tree: dict[str, str], expected: int | None
):
    assert free_bytes_of_host(written(tmp_path, tree)) == expected


def test_weights_that_fit_are_not_refused():
    check_room(WEIGHTS, dtype="auto", quantization="none", free_bytes=9 * GIB, where="cpu")


@pytest.mark.parametrize(
    ("free_bytes", "dtype", "quantization", "says", "silent"),
    [
        (6 * GIB, "auto", "none", ["take 9.00 GiB", "6.00 GiB", "3.00 GiB are missing", "int8", "nf4"], []),
        (4 * GIB, "auto", "none", ["5.00 GiB are missing", "nf4 (about 3."], ["int8"]),
        (1 * GIB, "auto", "none", ["8.00 GiB are missing", "smaller model"], ["quantization"]),
        (9 * GIB, "float32", "none", ["take 18.00 GiB", "int8"], []),
        (4 * GIB, "auto", "int8", ["nf4 (about"], ["to int8"]),
        (-5, "auto", "nf4", ["0.0 MiB of memory are free on cpu"], ["quantization"]),
    ],
)
def test_a_refusal_says_how_much_is_missing_and_what_would_fit(
    free_bytes: int, dtype: str, quantization: str, says: list[str], silent: list[str]
):
    with pytest.raises(errors.Exhausted) as refused:
        check_room(WEIGHTS, dtype=dtype, quantization=quantization, free_bytes=free_bytes, where="cpu")
    assert all(words in str(refused.value) for words in says), str(refused.value)
    assert not any(words in str(refused.value) for words in silent), str(refused.value)
