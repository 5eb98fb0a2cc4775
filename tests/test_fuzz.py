"""The fuzzer (tools/fuzz.py): each reader survives a few hundred mutated files, and each of its checks bites."""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fastgru.formats import FormatError

TOOLS = Path(__file__).parent.parent / "tools"
if not (TOOLS / "fuzz.py").is_file():
    pytest.skip("tools/ does not lie beside these tests", allow_module_level=True)
if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("the fuzzer runs inputs in forked processes, which this system lacks", allow_module_level=True)
sys.path.insert(0, str(TOOLS))

import fuzz  # noqa: E402
import fuzz_blocks  # noqa: E402
import fuzz_mutations  # noqa: E402
from fuzz_guard import NAME  # noqa: E402


def test_mutated_golden_files() -> None:
    """300 of each reader, in a process of its own, where probes can be set before the package is imported."""
    command = [sys.executable, str(TOOLS / "fuzz.py"), "--inputs", "300", "--seconds", "60", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if " inputs " in line]
    readers = [reader for reader in fuzz.READERS if not reader.missing()]
    assert len(lines) == len(readers)
    for line, reader in zip(lines, readers, strict=True):
        name, inputs, _, _, accepted, _, blocks = line.split()[:7]
        assert (name, inputs) == (reader.name, "300")
        assert accepted not in ("0%", "100%") and int(blocks) > 40, line


def planted(target: Callable[[bytes], Any], seeds: list[bytes] | None = None, **options: Any) -> fuzz.Report:
    """Fuzz a reader that has a fault."""
    reader = fuzz.Reader("planted", lambda: seeds or [b"seed"], fuzz_mutations.plain, target, warm=False)
    return fuzz.fuzz(reader, **{"seconds": 30, "inputs": 20, "out": None, "most_findings": 1, **options})


def imports(data: bytes) -> None:
    sys.modules.pop("this", None)
    import this  # noqa: F401


def opens(data: bytes) -> None:
    open(os.devnull).close()


def opens_and_hides_it(data: bytes) -> None:
    try:
        opens(data)
    except BaseException:
        pass


def starts_a_process(data: bytes) -> None:
    os.system("true")


def connects(data: bytes) -> None:
    import socket

    socket.socket()


def allocates(data: bytes) -> None:
    bytes(32 << 20)


def allocates_beyond_memory(data: bytes) -> None:
    try:
        bytearray(1 << 46)
    except MemoryError as error:
        raise FormatError(f"{NAME}: expected a size, found a large one") from error


def hangs(data: bytes) -> None:
    while True:
        pass


def raises_key_error(data: bytes) -> None:
    {}["x"]


def names_no_file(data: bytes) -> None:
    raise FormatError("expected a model, found something else")


def names_no_cause(data: bytes) -> None:
    raise FormatError(f"{NAME}: bad")


def tells_too_much(data: bytes) -> None:
    error = FormatError(f"{NAME}: expected a model, found")
    error.args = ("x" * 10_000,)  # the constructor would cut it
    raise error


def crashes(data: bytes) -> None:
    faulthandler.disable()  # no traceback among the tests' own words
    os.abort()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (imports, "import"),
        (opens, "open"),
        (opens_and_hides_it, "swallowed an attempt: open"),
        (starts_a_process, "os.system"),
        (connects, "socket"),
        (allocates, "allocated"),
        (allocates_beyond_memory, "beyond the address space"),
        (hangs, "no end after"),
        (raises_key_error, "KeyError"),
        (names_no_file, "names no file"),
        (names_no_cause, "no cause"),
        (tells_too_much, "a message of"),
        (crashes, "ended with code -6"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_check_bites(target: Callable[[bytes], Any], words: str, tmp_path: Path) -> None:
    report = planted(target, out=tmp_path)
    assert report.findings, "nothing was found"
    assert words in report.findings[0][0], report.findings[0][0]
    kept = sorted(path.name for path in (tmp_path / "planted").iterdir())
    assert len(kept) == 2 and kept[1] == kept[0] + ".txt"


def test_a_hang_in_c_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "WALL_SECONDS", 1.0)

    def hangs_deaf(data: bytes) -> None:
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            pass

    assert "no answer" in planted(hangs_deaf).findings[0][0]


def test_good_readers_pass() -> None:
    def good(data: bytes) -> None:
        if data != b"seed":
            raise FormatError(f"{NAME}: expected the seed, found another file")

    report = planted(good)
    assert not report.findings and report.inputs == 20


def test_coverage_guides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind four bytes, to be guessed one after the other, the fault is found."""
    source = "def read(data):\n" + "".join(
        f"{'    ' * (i + 1)}if data[{i} : {i + 1}] == {bytes((c,))!r}:\n" for i, c in enumerate(b"\x7f\x80\xff\x01")
    )
    (tmp_path / "fuzzed_deep.py").write_text(source + "    " * 5 + "raise KeyError('deep')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    fuzz_blocks.watch("fuzzed_deep")
    read = importlib.import_module("fuzzed_deep").read
    report = planted(read, seeds=[bytes(6)], inputs=200_000, seconds=60)
    assert "KeyError: 'deep'" in report.findings[0][0]
    assert report.blocks >= 4 and report.corpus >= 4  # the function and the first branches; the last one raises


def test_probes_change_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fuzzed_plain.py").write_text(
        '"""Page."""\nfrom __future__ import annotations\n\n\ndef f(x):\n    """Words."""\n'
        "    try:\n        while x:\n            x -= 1\n        else:\n            return 1 // x\n"
        "    except ZeroDivisionError as error:\n        return error.__traceback__.tb_lineno\n"
        "    finally:\n        x = 7\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = fuzz_blocks.count()
    fuzz_blocks.watch("fuzzed_plain")
    module = importlib.import_module("fuzzed_plain")
    assert module.f(2) == 11 and module.f.__doc__ == "Words." and module.__doc__ == "Page."
    assert fuzz_blocks.count() - before == 6
    with pytest.raises(RuntimeError, match="not to be imported before"):
        fuzz_blocks.watch("fuzzed_plain")


def test_the_same_seed_gives_the_same_inputs() -> None:
    for reader in fuzz.READERS:
        if reader.missing():
            continue
        seeds = reader.seeds()
        once, again = ([reader.mutate(rng, seeds[i % len(seeds)]) for i in range(40)] for rng in (Random(3), Random(3)))
        assert once == again
        assert sum(a not in seeds for a in once) > 20
