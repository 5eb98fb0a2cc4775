"""What all tests share: where other real files lie, and what happens to comparisons with live frameworks.

FASTGRU_SHARED          a folder of real models that are not part of the project; tests that read it skip without it
FASTGRU_REQUIRE_PARITY  frameworks, comma-separated: comparisons with each of them must run, and a skipped one fails
FASTGRU_IMPORT_FIRST    a module to import before fastgru (two OpenMP runtimes meet in one process)
FASTGRU_IMPORT_AFTER    a module to import after fastgru
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("FASTGRU_IMPORT_FIRST"):
    importlib.import_module(os.environ["FASTGRU_IMPORT_FIRST"])

import fastgru

if os.environ.get("FASTGRU_IMPORT_AFTER"):
    importlib.import_module(os.environ["FASTGRU_IMPORT_AFTER"])

REQUIRED = [name for name in os.environ.get("FASTGRU_REQUIRE_PARITY", "").split(",") if name]
PARITY_FILE = re.compile(r"test_parity_([a-z]+)")

ran: Counter[str] = Counter()
skipped: Counter[str] = Counter()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Small files that real frameworks wrote, and what they computed (tools/make_golden.py)."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models that are not part of the project."""
    folder = os.environ.get("FASTGRU_SHARED", "")
    if not folder:
        pytest.skip("FASTGRU_SHARED is not set: the real models are not part of the project")
    return Path(folder)


def framework_of(item: pytest.Item) -> str | None:
    """The live framework that a test needs: its parity marker's argument, or its file's name."""
    marker = item.get_closest_marker("parity")
    if marker is not None:
        return str(marker.args[0]) if marker.args else "unnamed"
    match = PARITY_FILE.match(item.path.name)
    return match[1] if match else None


def pytest_report_header() -> list[str]:
    info = fastgru.build_info()
    isas = ", ".join(info["isas"])
    return [
        f"fastgru {info['version']}: {info['isa']} of {isas}; openmp {info['openmp']}; {info['compiler']}",
        f"fastgru from {Path(fastgru.__file__).parent}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        framework = framework_of(item)
        if framework is not None and item.get_closest_marker("parity") is None:
            item.add_marker(pytest.mark.parity(framework))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    report: Any = yield
    report.framework = framework_of(item)
    if report.framework is not None and REQUIRED and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"FASTGRU_REQUIRE_PARITY is set, but this was skipped: {report.longrepr}"
    return report


def pytest_runtest_logreport(report: Any) -> None:
    """Count, here and not above: pytest-xdist runs tests in other processes, and sends the reports."""
    framework = getattr(report, "framework", None)
    if framework is None:
        return
    if report.skipped:
        skipped[framework] += not hasattr(report, "wasxfail")
    elif report.when == "call":
        ran[framework] += 1


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A module that skips itself at import (importorskip) counts as well."""
    report: Any = yield
    match = PARITY_FILE.match(collector.path.name) if isinstance(collector, pytest.Module) else None
    if match and report.skipped:
        skipped[match[1]] += 1
        if REQUIRED:
            report.outcome = "failed"
            report.longrepr = f"FASTGRU_REQUIRE_PARITY is set, but the file was skipped: {report.longrepr}"
    return report


def version_of(framework: str) -> str:
    for name in (framework, f"{framework}-cpu", framework.replace("sk", "scikit-")):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    elsewhere = hasattr(session.config, "workerinput")  # a process of pytest-xdist sees a part of the tests
    if not elsewhere and exitstatus == pytest.ExitCode.OK and any(not ran[name] for name in REQUIRED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    names = sorted({*ran, *skipped, *REQUIRED})
    if names:
        terminalreporter.section("parity with live frameworks", sep="-")
    for name in names:
        missing = "; expected some" if name in REQUIRED and not ran[name] else ""
        line = f"{name} {version_of(name)}: {ran[name]} cases ran, {skipped[name]} skipped{missing}"
        terminalreporter.line(line, red=bool(missing))
