"""Threads: how many a call takes, Python threads that share a model, fork, and what the environment says."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np
import pytest
from helpers_core import Case, assert_same, output_of, run_python

import fastgru
from fastgru import nn, ops

OPENMP = fastgru.build_info()["openmp"]
needs_openmp = pytest.mark.skipif(not OPENMP, reason="this build has no OpenMP: every call takes one thread")
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity here")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
GET = "import fastgru; print(fastgru.get_num_threads())"

# code for a fresh process: a big call (far over the threshold of work), a small one, and the number of OS threads
PRELUDE = """
import os, threading, numpy as np, fastgru
from fastgru import nn, ops
rng = np.random.default_rng(0)
w = [rng.uniform(-0.1, 0.1, s) for s in ((192, 64), (192, 64), (192,), (192,))]
packed = ops.pack_gru(*w)
dense = ops.pack_dense(w[0])
big, small = rng.standard_normal((64, 16, 64)).astype("f4"), rng.standard_normal((2, 2, 64)).astype("f4")
assert big.shape[0] * big.shape[1] * 192 * 128 > 1e7
def os_threads():
    return len(os.listdir("/proc/self/task"))
"""


@pytest.fixture(autouse=True)
def restored() -> Any:
    before = fastgru.get_num_threads()
    yield
    fastgru.set_num_threads(before)


# --- how many --------------------------------------------------------------------------------------------------------


def test_set_and_get() -> None:
    for n in (1, 2, 7, np.int64(3)):
        fastgru.set_num_threads(n)
        assert fastgru.get_num_threads() == n
    fastgru.set_num_threads(10**9)
    assert 1 <= fastgru.get_num_threads() <= 10**9
    case = Case(40, 10, 40, 40)
    expected = case.run(None, 1)
    for n in (1, 3, 10**9):
        fastgru.set_num_threads(n)
        assert_same(case.run(None, None)[0], expected[0])


@needs_openmp
@needs_affinity
def test_default_is_the_least_of_what_limits() -> None:
    cpus = len(os.sched_getaffinity(0))
    free = int(output_of(GET))
    assert 1 <= free <= cpus  # a cgroup may grant less than the affinity
    assert int(output_of(GET, FASTGRU_NUM_THREADS="1")) == 1
    assert int(output_of(GET, OMP_NUM_THREADS="1")) == 1
    assert int(output_of(GET, OMP_NUM_THREADS="1,4")) == 1
    assert int(output_of(GET, FASTGRU_NUM_THREADS="4096")) == free
    assert int(output_of(GET, OMP_NUM_THREADS="4096", FASTGRU_NUM_THREADS="4096")) == free
    assert int(output_of(GET, FASTGRU_NUM_THREADS="1", OMP_NUM_THREADS="2")) == 1
    for nonsense in ("", "many", "1.5", " "):
        assert int(output_of(GET, OMP_NUM_THREADS=nonsense)) == free
    for nothing in ("", " "):
        assert int(output_of(GET, FASTGRU_NUM_THREADS=nothing)) == free
    for wrong in ("many", "1.5", "0", "-3"):  # ours is refused, as a wrong FASTGRU_ISA is
        done = run_python("import fastgru", FASTGRU_NUM_THREADS=wrong)
        assert (
            done.returncode != 0
            and f"FASTGRU_NUM_THREADS: expected a whole number >= 1, found '{wrong}'" in done.stderr
        )


@needs_openmp
@needs_affinity
def test_affinity_limits_the_default() -> None:
    first = min(os.sched_getaffinity(0))
    assert output_of(f"import os; os.sched_setaffinity(0, {{{first}}})\n{GET}") == "1"


@needs_openmp
def test_set_overrides_the_environment() -> None:
    code = "import fastgru; fastgru.set_num_threads(3); print(fastgru.get_num_threads())"
    assert output_of(code, FASTGRU_NUM_THREADS="1", OMP_NUM_THREADS="1") == "3"


@needs_openmp
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc to count a process's threads")
@pytest.mark.parametrize(
    "call",
    [
        "ops.gru({}, packed, num_threads={})",
        "ops.gru_final({}, packed, num_threads={})",
        "ops.dense(np.tile({}, (4, 4, 1)), dense, num_threads={})",
        "nn.GRU(64, 64)({}, num_threads={})",
    ],
)
def test_threads_are_really_taken_and_only_for_enough_work(call: str) -> None:
    """One thread in disguise would pass every comparison of bits; so would two threads for a call of microseconds."""
    small, one, three = call.format("small", 3), call.format("big", 1), call.format("big", 3)
    code = (
        f"{PRELUDE}\nn = [os_threads()]\nfor f in ({small!r}, {one!r}, {three!r}):\n    eval(f); n.append(os_threads())"
    )
    counts = output_of(code + "\nprint(*n)", OPENBLAS_NUM_THREADS="1").split()
    before, after_small, after_one, after_three = map(int, counts)
    assert before == after_small == after_one
    assert after_three == before + 2


@needs_openmp
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc to count a process's threads")
def test_default_and_set_num_threads_reach_the_kernels() -> None:
    code = PRELUDE + "\nn = os_threads(); fastgru.set_num_threads(4); ops.gru(big, packed); print(os_threads() - n)"
    assert output_of(code, OPENBLAS_NUM_THREADS="1") == "3"
    code = PRELUDE + "\nn = os_threads(); ops.gru(big, packed); print(os_threads() - n)"
    assert output_of(code, OPENBLAS_NUM_THREADS="1", FASTGRU_NUM_THREADS="1") == "0"


# --- sharing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 2])
def test_python_threads_share_a_model(num_threads: int) -> None:
    """Workspaces belong to calls: eight threads on one model, each with its own input, each gets its own bits."""
    gru = nn.GRU(20, 33, 2, batch_first=True, bidirectional=True)
    before = nn.GRU(20, 33, 1, batch_first=True, reset_after=False)
    inputs = [np.random.default_rng(i).standard_normal((8 + i, 12, 20)).astype(np.float32) for i in range(8)]
    lengths = [np.random.default_rng(i).integers(0, 13, 8 + i) for i in range(8)]
    expected = [(gru(x, lengths=n)[0], before(x)[0]) for x, n in zip(inputs, lengths, strict=True)]
    faults: list[str] = []
    gate = threading.Barrier(8)

    def work(i: int) -> None:
        gate.wait()
        for _ in range(25):
            y = gru(inputs[i], lengths=lengths[i], num_threads=num_threads)[0]
            z = before(inputs[i], num_threads=num_threads)[0]
            if not (np.array_equal(y, expected[i][0]) and np.array_equal(z, expected[i][1])):
                faults.append(f"thread {i}")
                return

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not any(t.is_alive() for t in threads) and not faults


def test_parallel_workspaces_are_apart() -> None:
    """Threads that shared scratch memory would spoil each other's sums: enough work and repeats to see it."""
    for variant in ({}, {"reset_after": False}):
        case = Case(64, 24, 48, 96, h0=False, variant=variant)
        packed = case.packed()
        expected = case.call(ops.gru, packed, num_threads=1)
        for _ in range(8):
            for threads in (2, 4):
                for found, e in zip(case.call(ops.gru, packed, num_threads=threads), expected, strict=True):
                    assert_same(found, e, f"{threads} threads")
                assert_same(case.call(ops.gru_final, packed, num_threads=threads), expected[1])


def test_the_gil_is_free_while_kernels_run() -> None:
    """A counting thread goes on during a long call."""
    case = Case(64, 60, 128, 128)
    packed, ticks, stop = case.packed(), [0], threading.Event()

    def count() -> None:
        while not stop.wait(0.0005):
            ticks[0] += 1

    a = case.arrays()
    counter = threading.Thread(target=count)
    counter.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # a thread that has to ask for the lock would wait 10 s for it
    try:
        before = ticks[0]
        for _ in range(20):
            ops.gru(a["x"], packed, num_threads=1)
        during = ticks[0] - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        counter.join()
    assert during > 10


# --- fork ------------------------------------------------------------------------------------------------------------

FORK = """
expected = ops.gru(big, packed, num_threads=1)[0]
assert (ops.gru(big, packed, num_threads=4)[0] == expected).all()
pid = os.fork()
if pid == 0:
    code = 1
    try:
        assert fastgru.get_num_threads() == 1
        fastgru.set_num_threads(8)
        for n in (None, 1, 4):
            assert (ops.gru(big, packed, num_threads=n)[0] == expected).all()
            assert nn.GRU(64, 64)(big, num_threads=n)[0].shape == (64, 16, 64)
            ops.dense(np.tile(big, (4, 4, 1)), dense, num_threads=n)
        assert fastgru.get_num_threads() == 1
        code = 0
    finally:
        os._exit(code)
done, status = os.waitpid(pid, 0)
assert (ops.gru(big, packed, num_threads=4)[0] == expected).all()  # the parent keeps its threads
print(os.waitstatus_to_exitcode(status), fastgru.get_num_threads() >= 1)
"""


@needs_fork
def test_fork_after_threads() -> None:
    """libgomp waits for ever in the child for threads that only the parent has: the child takes one thread instead."""
    assert output_of(PRELUDE + FORK, timeout=60) == "0 True"


@needs_fork
def test_fork_while_another_thread_computes() -> None:
    code = """
import threading
stop = threading.Event()
def busy():
    while not stop.is_set():
        ops.gru(big, packed, num_threads=2)
t = threading.Thread(target=busy); t.start()
"""
    assert output_of(PRELUDE + code + FORK + "\nstop.set(); t.join()", timeout=60) == "0 True"


@needs_fork
def test_multiprocessing_fork_pool() -> None:
    code = """
import multiprocessing
def score(i):
    return ops.gru(big + i, packed)[1].sum()
if __name__ == "__main__":
    expected = [score(i) for i in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(score, range(4)) == expected)
"""
    assert output_of(PRELUDE + code, timeout=60) == "True"
