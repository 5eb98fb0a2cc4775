"""Fuzzing of every reader: mutated golden files, each read under watch.

    python tools/fuzz.py [--reader NAME ...] [--seconds S] [--inputs N] [--still S] [--seed N]

Each input goes through `fastgru.load` (a checkpoint: `fit(resume=…)`) from its bytes on. It may give a model, or a
FormatError that names the file and the cause; everything else is a finding, as are an import, an open file, a process,
a socket, an allocation of more than 4 × the largest honest file of its kind (and a constant for Python's objects), two
seconds of processor time, and a crash. Findings are written to build/fuzz/READER/ (the input, and a text that says what
happened); the exit code is 1.

Inputs run in a forked process that is replaced when it dies. An input that reaches a block of fastgru/formats, of
training/checkpoint.py or of pyfive that none reached before joins the corpus. A run ends after --seconds, or after
--inputs and --still seconds without a new block: `--seconds 0 --inputs 200000 --still 600` is the long run of
docs/security.md.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the package beside this folder, where it is built in place

import fuzz_blocks  # noqa: E402

if __name__ == "__main__":
    fuzz_blocks.watch("fastgru.formats", "fastgru.training.checkpoint", "pyfive")

from fuzz_guard import Guard  # noqa: E402
from fuzz_readers import READERS, Reader  # noqa: E402

OUT = ROOT / "build" / "fuzz"
WALL_SECONDS = 20.0
"""An input that keeps a process this long, in C code that no signal interrupts, is a hang."""
_SHARED = 64 << 20


@dataclass
class Report:
    """What a run saw."""

    reader: str
    inputs: int = 0
    accepted: int = 0
    blocks: int = 0
    seconds: float = 0.0
    still: float = 0.0
    worst_seconds: float = 0.0
    worst_peak: int = 0
    corpus: int = 0
    findings: list[tuple[str, bytes]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.reader:<13}{self.inputs:>9,} inputs {self.inputs / max(self.seconds, 1e-9):>6,.0f}/s "
            f"{self.accepted / max(self.inputs, 1):>4.0%} accepted {self.blocks:>5,} of {fuzz_blocks.count():,} blocks "
            f"{self.corpus:>5} corpus; no new block for {self.still:.0f} s; worst {self.worst_seconds:.3f} s, "
            f"{self.worst_peak / 2**20:.2f} MiB; {len(self.findings)} findings"
        )


# ---------------------------------------------------------------------------------------------------- worker


def _worker(sent: Any, *arguments: Any) -> None:
    try:
        _work(sent, *arguments)
    except Exception:  # a fault of the fuzzer itself
        sent.send(("broken", traceback.format_exc()))


def _work(
    sent: Any, now: mmap.mmap, reader: Reader, seeds: list[bytes], found: list[bytes], seed: str, first: int, last: int
) -> None:
    """Judge inputs number `first` to `last` and send what is new; runs in a process of its own."""
    guard = Guard(reader.target, max(map(len, seeds)), reader.folder)
    rng = Random(seed)
    worst, peak = 0.0, 0
    for data in (*seeds, *found):  # what the honest files and earlier workers reached
        now.seek(0)
        now.write(len(data).to_bytes(8, "little") + data)
        verdict = guard.judge(data, count=True)
        worst, peak = max(worst, verdict.seconds), max(peak, verdict.peak)
        if verdict.finding:
            sent.send(("finding", data, verdict.finding))
    guard.start()
    blocks = fuzz_blocks.seen()
    accepted, told = 0, time.monotonic()
    sent.send(("progress", first, accepted, blocks, worst, peak))
    count = first - 1
    for count in range(first, last):
        # most of what was found is broken early: the honest files stay one parent in two
        data = reader.mutate(rng, rng.choice(found if found and rng.random() < 0.5 else seeds))
        if len(data) > _SHARED - 8:
            continue
        now.seek(0)
        now.write(len(data).to_bytes(8, "little") + data)
        verdict = guard.judge(data)
        accepted += verdict.accepted
        worst, peak = max(worst, verdict.seconds), max(peak, verdict.peak)
        if verdict.finding:
            sent.send(("finding", data, verdict.finding))
        elif fuzz_blocks.seen() > blocks:
            blocks = fuzz_blocks.seen()
            found.append(data)
            sent.send(("new", data, blocks))
        if verdict.seconds > 0.1 or time.monotonic() - told > 0.25:
            told = time.monotonic()
            sent.send(("progress", count + 1, accepted, blocks, worst, peak))
            accepted = 0
        if guard.grown:
            break
    sent.send(("progress", count + 1, accepted, blocks, worst, peak))
    sent.send(("done",))


def fuzz(
    reader: Reader,
    *,
    seconds: float = 20.0,
    inputs: int = 0,
    still: float = 0.0,
    seed: int = 0,
    out: Path | None = OUT,
    most_findings: int = 20,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Fuzz one reader, and return what was seen.

    Parameters
    ----------
    seconds : float
        The end, whatever else; 0 for none.
    inputs, still : int, float
        Without `still` the run ends after `inputs` (0: after `seconds`); with it, after `inputs` and `still` seconds
        without a new line.
    out : Path or None
        Where findings are written, in a folder named after the reader.
    """
    seeds, grown = reader.seeds(), list[bytes]()
    fuzz_blocks.reset()
    reader.read_seeds(seeds)
    context = multiprocessing.get_context("fork")
    shared = mmap.mmap(-1, _SHARED)
    report = Report(reader.name, corpus=len(seeds))
    begin = changed = told = time.monotonic()
    last = inputs if inputs and not still else sys.maxsize
    kinds: set[str] = set()
    generation = 0

    def found(data: bytes, text: str) -> None:
        kind = _kind(text)
        if kind in kinds:
            return
        kinds.add(kind)
        report.findings.append((text, data))
        if out is not None:
            _keep(out / reader.name, data, text)

    finished = False
    while not finished and report.inputs < last:
        receive, send = context.Pipe(False)
        name = f"{seed}.{reader.name}.{generation}"
        arguments = (send, shared, reader, seeds, grown, name, report.inputs, last)
        worker = context.Process(target=_worker, args=arguments, daemon=True)
        worker.start()
        send.close()
        generation += 1
        heard = time.monotonic()
        while True:
            now = time.monotonic()
            report.seconds, report.still = now - begin, now - changed
            if (seconds and report.seconds > seconds) or (still and report.inputs >= inputs and report.still > still):
                finished = True
                break
            if len(report.findings) >= most_findings:
                finished = True
                break
            if now - told > 60:
                told = now
                tell(str(report))
            if not receive.poll(min(1.0, seconds or 1.0)):
                if now - heard > WALL_SECONDS:
                    found(_current(shared), f"no answer for {WALL_SECONDS:.0f} s")
                    report.inputs += 1
                    break
                continue
            try:
                message = receive.recv()
            except EOFError:
                worker.join()
                if worker.exitcode:
                    found(_current(shared), f"the process ended with code {worker.exitcode}")
                    report.inputs += 1
                break
            heard = time.monotonic()
            if message[0] == "finding":
                found(message[1], message[2])
            elif message[0] == "new":
                grown.append(message[1])
                report.blocks, report.corpus, changed = message[2], len(seeds) + len(grown), heard
            elif message[0] == "progress":
                _, report.inputs, accepted, blocks, worst, peak = message
                report.accepted += accepted
                report.blocks = max(report.blocks, blocks)
                report.worst_seconds = max(report.worst_seconds, worst)
                report.worst_peak = max(report.worst_peak, peak)
            elif message[0] == "broken":
                raise RuntimeError(message[1])
            else:
                worker.join()
                break
        if worker.is_alive():
            worker.kill()
        worker.join()
        receive.close()
    report.seconds, report.still = time.monotonic() - begin, time.monotonic() - changed
    shared.close()
    return report


def _current(shared: mmap.mmap) -> bytes:
    """Return the input that the worker had in hand."""
    size = int.from_bytes(shared[:8], "little")
    return shared[8 : 8 + size]


def _kind(text: str) -> str:
    """Return what makes two findings one: the places of a traceback, or the text without its numbers."""
    places = [line for line in text.splitlines() if line.startswith("  File")][-2:]
    return "\n".join(places) or "".join(c for c in text.split("\n")[0] if not c.isdigit())[:80]


def _keep(folder: Path, data: bytes, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(data).hexdigest()[:16]
    (folder / name).write_bytes(data)
    (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8", errors="replace")


def main(arguments: list[str] | None = None) -> int:
    names = [reader.name for reader in READERS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reader", action="append", choices=[*names, "all"], help="default: all, one after the other")
    parser.add_argument("--seconds", type=float, default=None, help="per reader; 0 for no end (default: 20)")
    parser.add_argument("--inputs", type=int, default=0)
    parser.add_argument("--still", type=float, default=0.0, help="go on until no new block ran for so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=Path, help="judge one file, as a finding of the reader, and end")
    options = parser.parse_args(arguments)
    seconds = options.seconds if options.seconds is not None else 0.0 if options.inputs else 20.0
    if not seconds and not options.inputs:
        parser.error("--seconds 0 needs --inputs")
    chosen = [r for r in READERS if not options.reader or r.name in options.reader or "all" in options.reader]
    failed = False
    for reader in chosen:
        if missing := reader.missing():
            print(f"{reader.name:<13} not fuzzed: the package {missing} is not installed", flush=True)
            continue
        if options.input:
            reader = replace(reader, seeds=lambda seeds=reader.seeds: [*seeds(), options.input.read_bytes()])
        report = fuzz(
            reader,
            seconds=0 if options.input else seconds,
            inputs=1 if options.input else options.inputs,
            still=options.still,
            seed=options.seed,
            tell=print,
        )
        print(report, flush=True)
        for text, data in report.findings:
            failed = True
            print(f"  {len(data)} bytes in {OUT / reader.name}: {text.strip().splitlines()[0][:200]}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
