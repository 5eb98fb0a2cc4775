"""Verdicts on what compare.py measured, tables of them, and a picture. Lost cases come first.

python benchmarks/report.py build/benchmarks/compare.json [--update]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
OURS = "fastgru"
NOT_COUNTED = ("PyTorch int8",)  # another precision: shown only
AHEAD, SHARE = 1.3, 0.92  # a case is won well where one of the two is reached
TRAINING_SHARE = (0.80, 0.85)  # below H = 256, and from there
CANNOT = "NotImplementedError"  # what an engine has no way to do is no failure
WRONG = 1e-5  # a float32 output that differs more from the equations in float64 has failed

Row = dict[str, Any]


def best(row: Row, engine: str) -> dict[str, Any] | None:
    """The numbers of an engine's fastest configuration."""
    entry = row["engines"].get(engine)
    return entry["configurations"][entry["best"]] if entry and entry["best"] is not None else None


def verdict(row: Row, limit_ms: list[float]) -> dict[str, Any]:
    """Which peer is fastest, how many times as long it takes, and the share of the limit: medians over the rounds."""
    peers = {e: numbers for e in row["engines"] if e not in (OURS, *NOT_COUNTED) and (numbers := best(row, e))}
    fastest = min(peers, key=lambda e: peers[e]["p50"], default=None)
    mine = best(row, OURS)
    found: dict[str, Any] = {"fastest": fastest, "ratio": None, "share": None}
    if mine and fastest:
        found["ratio"] = float(np.median(np.array(peers[fastest]["rounds"]) / mine["rounds"]))
    if limit_ms:
        found["limit_ms"] = float(np.median(limit_ms))
        if mine:
            found["share"] = float(np.median(np.array(limit_ms) / mine["rounds"]))
    return found


def word(row: Row) -> str:
    """LOST, short of what is aimed at, or nothing."""
    if best(row, OURS) is None:
        return "FAILED"
    if row["ratio"] is None:
        return ""
    if row["ratio"] < 1:
        return "LOST"
    share = row["share"] or 0
    if row["case"]["kind"] == "training":
        return "" if share >= TRAINING_SHARE[row["case"]["H"] >= 256] else "short"
    return "" if row["ratio"] >= AHEAD or share >= SHARE else "short"


def in_order(rows: Iterable[Row]) -> list[Row]:
    """The lost ones first, the worst of them at the top; the others as they were measured."""
    return sorted(
        rows, key=lambda r: (word(r) not in ("FAILED", "LOST"), (r["ratio"] or 0) if word(r) == "LOST" else 0)
    )


def number(ms: float | None) -> str:
    """Three digits; milliseconds."""
    return "" if ms is None else f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def threads_of(row: Row) -> str:
    return f"{row['threads']}"


def line(row: Row) -> str:
    """A case in one line, while the others are still being measured."""
    mine = best(row, OURS)
    against = f"{row['fastest']} takes {times(row['ratio'])} times as long" if row["ratio"] else "no peer"
    shown = "failed" if mine is None else f"{number(mine['p50'])} ms"
    limit = f", {percent(row['share'])} of the limit" if row["share"] else ""
    return f"{row['name']:<26}{shown:>12}  {against}{limit}  {word(row)}".rstrip()


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns stand under each other in a terminal too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in lines)


def missing(row: Row, engine: str) -> str:
    """What stands in place of a number."""
    ways = row["engines"].get(engine, {"configurations": {}})["configurations"].values()
    return "–" if all(n["failed"].startswith(CANNOT) for n in ways) else "failed"


def main_table(results: dict[str, Any]) -> str:
    columns = [e for e, about in results["engines"].items() if "absent" not in about]
    header = [
        "case N, T, I, H",
        "threads",
        "clock",
        *columns,
        "limit",
        "fastest peer / fastgru",
        "share of the limit",
        "",
    ]
    rows = []
    for row in in_order(results["rows"]):
        cells = []
        for engine in columns:
            numbers = best(row, engine)
            cell = number(numbers["p50"]) if numbers else missing(row, engine)
            cells.append(f"**{cell}**" if engine == row["fastest"] else cell)
        verdicts = [number(row.get("limit_ms")), times(row["ratio"]), percent(row["share"]), word(row)]
        rows.append([row["name"], threads_of(row), row["clock"], *cells, *verdicts])
    return table(header, rows)


def spread_table(results: dict[str, Any]) -> str:
    header = [
        "case N, T, I, H",
        "threads",
        "engine, configuration",
        "p10",
        "median",
        "p90",
        "p99",
        "wall",
        "calls",
        "error",
    ]
    rows = []
    for row in in_order(results["rows"]):
        for engine in (OURS, row["fastest"]):
            if engine is None or (numbers := best(row, engine)) is None:
                continue
            shown = [number(numbers[p]) for p in ("p10", "p50", "p90", "p99", "wall_p50")]
            tail = [f"{numbers['calls']}", f"{numbers['error']:.0e}"]
            name = f"{engine}, {row['engines'][engine]['best']}"
            rows.append([row["name"], threads_of(row), name, *shown, *tail])
    return table(header, rows)


def engine_table(results: dict[str, Any]) -> str:
    header = ["engine", "version", "fastest as (cases)", "import s", "import MB", "most memory MB", "largest error"]
    rows = []
    for engine, about in results["engines"].items():
        if "absent" in about:
            continue
        entries = [row["engines"][engine] for row in results["rows"] if engine in row["engines"]]
        chosen = [entry["best"] for entry in entries if entry["best"]]
        ways = ", ".join(f"{way} ({chosen.count(way)})" for way in dict.fromkeys(sorted(chosen)))
        runs = [n for entry in entries for n in entry["configurations"].values() if "p50" in n]
        peaks, errors = [n["peak"] for n in runs if n["peak"]], [n["error"] for n in runs]
        megabytes = [
            f"{b / 1e6:.0f}" if b is not None else "" for b in (about.get("import_bytes"), max(peaks, default=None))
        ]
        error = f"{max(errors):.0e}" if errors else ""
        rows.append([engine, about["version"], ways, f"{about['import_seconds']:.2f}", *megabytes, error])
    return table(header, rows)


def memory_table(results: dict[str, Any]) -> str:
    """The most that a training step adds to what its process holds before: inputs, weights, gradients, and between."""
    engines = [e for e, about in results["engines"].items() if "absent" not in about]
    rows = []
    for row in results["rows"]:
        if row["case"]["kind"] == "training":
            found = {e: numbers.get("own_peak") for e in engines if (numbers := best(row, e))}
            cells = [f"{found[e] / 1e6:.0f}" if found.get(e) else "–" for e in engines]
            rows.append([row["name"], threads_of(row), *cells])
    return table(["MB, case N, T, I, H", "threads", *engines], rows)


def own_table(results: dict[str, Any]) -> str:
    rows = []
    for row in sorted(results["own"], key=lambda r: r.get("good", False)):
        aims = [
            f"at most {row['most']:.2f}" if row.get("most") else "",
            f"at least {row['least']:.2f}" if row.get("least") else "",
        ]
        said = "failed" if row["failed"] else "" if row["good"] else "MISSED"
        rows.append(
            [row["what"], row["case"], threads_of(row), times(row.get("ratio")), ", ".join(filter(None, aims)), said]
        )
    return table(["fastgru against itself", "case N, T, I, H", "threads", "ratio", "aim", ""], rows)


def troubles(results: dict[str, Any]) -> list[str]:
    """Who is absent, what failed and where, what was not measured."""
    said = [f"{e} is absent: {about['absent']}." for e, about in results["engines"].items() if "absent" in about]
    failed: dict[str, list[str]] = {}
    for row in results["rows"]:
        for engine, entry in row["engines"].items():
            for way, numbers in entry["configurations"].items():
                if "failed" in numbers and not numbers["failed"].startswith(CANNOT):
                    where = f"{row['name']} on {row['threads']}"
                    failed.setdefault(f"{engine}, {way}: {numbers['failed']}", []).append(where)
    for row in results["own"]:
        for why in row["failed"].values():
            failed.setdefault(f"{OURS}, {row['what']}: {why}", []).append(f"{row['case']} on {row['threads']}")
    said += [f"Failed: {why} ({'; '.join(where)})." for why, where in failed.items()]
    if "no_limits" in results:
        said.append(f"The limits were not measured: {results['no_limits']}.")
    return said


def headline(results: dict[str, Any]) -> str:
    counted = [row for row in results["rows"] if row["ratio"] is not None]
    lost = [
        f"{r['name']} on {r['threads']} ({r['fastest']}, {r['ratio']:.2f})"
        for r in in_order(counted)
        if word(r) == "LOST"
    ]
    short = sum(word(row) == "short" for row in counted)
    said = f"{len(lost)} of {len(counted)} cases lost{': ' + ', '.join(lost) if lost else ''}."
    aim = (
        f"{AHEAD} times as fast as the fastest float32 peer nor at {SHARE:.0%} of the limit "
        f"(training: not at {TRAINING_SHARE[0]:.0%}, or {TRAINING_SHARE[1]:.0%} from H = 256)"
    )
    return said + (f" {short} won, but neither {aim}." if short else "")


def conditions(results: dict[str, Any]) -> str:
    m = results["machine"]
    peaks: dict[int, list[float]] = {}
    for row in results["rows"]:
        if "flops" in row:
            peaks.setdefault(row["threads"], []).append(row["flops"] / 1e9)
    measured = "; ".join(f"{min(p):.0f} to {max(p):.0f} GFLOP/s on {t}" for t, p in peaks.items())
    return (
        f"{m['processor']}, {m['processors']} processors, {', '.join(m['caches'])}; {m['system']}; "
        f"Python {m['python']}; {m['date']}; load {m['load_before']} before and {m['load_after']} after; "
        f"{results['minutes']} minutes{', --quick' if results['quick'] else ''}. "
        f"FMA peak, as medians of the cases: {measured or 'not measured'}."
    )


def short_table(results: dict[str, Any]) -> str:
    """For the README: fastgru, the fastest peer and the limit."""
    rows = []
    for row in in_order(results["rows"]):
        mine, peer = best(row, OURS), best(row, row["fastest"] or "")
        cells = [number(n["p50"]) if n else "failed" for n in (mine, peer)]
        name = f"{cells[1]} ({row['fastest']})" if peer else ""
        rows.append([row["name"], threads_of(row), cells[0], name, times(row["ratio"]), percent(row["share"])])
    header = [
        "case N, T, I, H",
        "threads",
        "fastgru, ms",
        "fastest float32 peer, ms",
        "peer / fastgru",
        "share of the limit",
    ]
    return table(header, rows)


def page(results: dict[str, Any], heading: str = "###") -> str:
    parts = [
        headline(results),
        conditions(results),
        *troubles(results),
        "Median milliseconds of a call, each engine in its fastest configuration; bold is the fastest float32 peer.",
        main_table(results),
        f"{heading} Spread\n\nfastgru and the fastest peer; ms by the clock of the table above, wall clock beside it; "
        "the largest error against float64.",
        spread_table(results),
        f"{heading} Engines\n\nImports are counted over Python with NumPy. Most memory: resident, in any case.",
        engine_table(results),
    ]
    if any(row["case"]["kind"] == "training" for row in results["rows"]):
        parts += [f"{heading} Memory of a training step", memory_table(results)]
    if results["own"]:
        parts += [f"{heading} fastgru against itself", own_table(results)]
    return "\n\n".join(parts) + "\n"


def picture(results: dict[str, Any], path: Path) -> Path | None:
    """Each engine's time over fastgru's, one line a case, and the limit; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fastgru", "font.size": 9})
    from matplotlib import pyplot

    rows = [row for row in in_order(results["rows"]) if best(row, OURS)]
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.27 * len(rows)), layout="constrained")
    columns = [e for e, about in results["engines"].items() if e != OURS and "absent" not in about]
    for i, engine in enumerate(columns):
        points = [(n["p50"] / best(row, OURS)["p50"], y) for y, row in enumerate(rows) if (n := best(row, engine))]  # type: ignore[index]  # filtered above
        if not points:  # an engine that ran none of these cases
            continue
        style = {"facecolors": "none", "edgecolors": "grey"} if engine in NOT_COUNTED else {"color": f"C{i}"}
        label = engine + " (not counted)" * (engine in NOT_COUNTED)
        axes.scatter(*zip(*points, strict=True), marker="osD^vP*X"[i % 8], s=28, label=label, **style)
    limits = [(row["limit_ms"] / best(row, OURS)["p50"], y) for y, row in enumerate(rows) if "limit_ms" in row]  # type: ignore[index]  # filtered above
    if limits:
        axes.scatter(*zip(*limits, strict=True), marker="|", s=140, color="black", label="limit of the machine")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [f"{r['name']} · {r['threads']} thr." for r in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("time / fastgru's time (right of the line: slower than fastgru)")
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def insert(target: Path, text: str) -> None:
    """Put `text` between the markers of a page."""
    old = target.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ValueError(f"{target}: expected {BEGIN} and, after it, {END}, once each")
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    target.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{after}", encoding="utf-8")


def update(results: dict[str, Any], drawn: Path | None) -> None:
    """The tables and the picture of docs/performance.md and README.md."""
    shown, shown_in_readme = "", ""
    if drawn:
        picture_file = ROOT / "docs" / "performance.svg"
        picture_file.write_bytes(drawn.read_bytes())
        shown = "![Times of all engines over fastgru's](performance.svg)\n\n"
        shown_in_readme = "![Times of all engines over fastgru's](docs/performance.svg)\n\n"
    insert(ROOT / "docs" / "performance.md", shown + page(results))
    brief = [headline(results), shown_in_readme + short_table(results), conditions(results)]
    insert(ROOT / "README.md", "\n\n".join(brief))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("results", type=Path, help="compare.json")
    parser.add_argument("--update", action="store_true", help="write the tables into docs/performance.md and README.md")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    sys.stdout.write(page(results))
    drawn = picture(results, arguments.results.with_suffix(".svg"))
    if arguments.update:
        update(results, drawn)


if __name__ == "__main__":
    main()
