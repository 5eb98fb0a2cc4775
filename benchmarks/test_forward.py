"""The same table of shapes for daily work: fastgru alone, by pytest-benchmark.

    python -m pytest benchmarks [-k "step and nn"] [--benchmark-compare] [--benchmark-autosave]

Not among the tests that a plain `pytest` collects.
"""

from __future__ import annotations

from typing import Any

import native
import pytest
import shapes
import worker
from peers import fastgru_calls


@pytest.mark.parametrize("threads", sorted({1, len(native.processors())}))
@pytest.mark.parametrize("configuration", fastgru_calls.CONFIGURATIONS)
@pytest.mark.parametrize("case", shapes.CASES, ids=lambda case: case.name)
def test_forward(benchmark: Any, case: shapes.Case, configuration: str, threads: int) -> None:
    benchmark.group = f"{case.name}, {threads} thread{'s' * (threads > 1)}"
    run = fastgru_calls.prepare(case, threads, configuration)
    run.feed(shapes.inputs(case, 0))
    benchmark(run.call)
    assert worker.check(case, run) < 1e-5
