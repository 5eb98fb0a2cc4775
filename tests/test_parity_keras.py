"""Live comparison with Keras 3 and tf-keras: models built there, saved, loaded and scored here.

By default the cases cover every pair of settings; FASTGRU_PARITY=full runs the whole product.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_parity import framework

from fastgru.loading import load

ROWS, STEPS, WIDTH, UNITS = 4, 6, 3, 5
FRAMEWORKS = ("keras", "tf_keras")
SETTINGS: dict[str, tuple[Any, ...]] = {
    "framework": FRAMEWORKS,
    "suffix": (".keras", ".h5"),
    "wrapper": ("plain", "concat", "sum", "mul", "ave", None, "RNN"),
    "reset_after": (True, False),
    "activation": ("tanh", "relu", "softsign", "elu"),
    "recurrent_activation": ("sigmoid", "hard_sigmoid"),
    "mask": ("none", "right", "left", "middle", "alternating", "all"),
    "go_backwards": (False, True),
    "return_sequences": (True, False),
    "return_state": (False, True),
    "stateful": (False, True),
    "zero_output_for_mask": (False, True),
    "use_bias": (True, False),
}


def is_possible(case: dict[str, Any]) -> bool:
    """Keras 3 refuses Bidirectional around a backwards layer, and cannot build a stateful one
    that returns its states (3.15: a TypeError in its compute_mask)."""
    both_ways = case["wrapper"] not in ("plain", "RNN")
    if both_ways and case["framework"] == "keras":
        if case["go_backwards"] or (case["return_state"] and case["stateful"]):
            return False
    # The states of a Bidirectional's two halves and its zero outputs are its own choice.
    return not (both_ways and case["zero_output_for_mask"])


def pairwise(settings: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """A deterministic greedy set of cases in which every possible pair of values occurs."""
    names = list(settings)
    rng = np.random.default_rng(7)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in range(len(settings[a]))
        for y in range(len(settings[b]))
    }

    def pairs(case: tuple[int, ...]) -> set[tuple[tuple[str, int], tuple[str, int]]]:
        return set(itertools.combinations(zip(names, case, strict=True), 2))

    cases: list[dict[str, Any]] = []
    stale = 0
    while missing and stale < 60:
        best: tuple[int, tuple[int, ...]] = (0, ())
        for _ in range(200):
            case = tuple(int(rng.integers(len(settings[name]))) for name in names)
            values = {n: settings[n][i] for n, i in zip(names, case, strict=True)}
            if is_possible(values):
                best = max(best, (len(pairs(case) & missing), case))
        if best[0] == 0:
            stale += 1
            continue
        missing -= pairs(best[1])
        cases.append({n: settings[n][i] for n, i in zip(names, best[1], strict=True)})
    return cases


def product(settings: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Every case of the settings that the project promises; the others vary along with them."""
    crossed = ("framework reset_after activation mask go_backwards wrapper return_state stateful").split()
    others = [name for name in settings if name not in crossed]
    for number, values in enumerate(itertools.product(*(settings[n] for n in crossed))):
        case = dict(zip(crossed, values, strict=True))
        for position, name in enumerate(others):
            choices = settings[name]
            case[name] = choices[(number // (position + 1) + position) % len(choices)]
        if case["wrapper"] not in ("plain", "RNN"):
            case["zero_output_for_mask"] = False
        if is_possible(case):
            yield case


FULL = os.environ.get("FASTGRU_PARITY") == "full"
CASES = (
    list(product(SETTINGS))
    if FULL
    else [c for name in FRAMEWORKS for c in pairwise({**SETTINGS, "framework": (name,)})]
)


def label(case: dict[str, Any]) -> str:
    return "-".join(name if value is True else str(value) for name, value in case.items() if value is not False)


def mask_of(kind: str) -> np.ndarray:
    """(ROWS, STEPS) valid steps; each row of its own length."""
    steps = np.arange(STEPS)
    lengths = np.array([STEPS, 4, 1, 2])[:, None]
    if kind == "right":
        return steps < lengths
    if kind == "left":
        return steps >= STEPS - lengths
    if kind == "middle":
        return (steps < 1) | (steps >= STEPS - lengths // 2) | (lengths == STEPS)
    if kind == "alternating":
        return (steps + np.arange(ROWS)[:, None]) % 2 == 0
    if kind == "all":
        valid = np.ones((ROWS, STEPS), bool)
        valid[1] = False
        return valid
    return np.ones((ROWS, STEPS), bool)


def sequences(seed: int, kind: str) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((ROWS, STEPS, WIDTH)).astype(np.float32)
    x[~mask_of(kind)] = 0.0
    return x


def randomise(model: Any, seed: int = 3) -> None:
    """Weights that are not small: zero biases and unit gains would hide mistakes."""
    rng = np.random.default_rng(seed)
    model.set_weights(
        [
            np.abs(0.4 * rng.standard_normal(w.shape)) + 0.2
            if "variance" in name
            else 0.4 * rng.standard_normal(w.shape)
            for w, name in zip(model.get_weights(), [getattr(v, "path", v.name) for v in model.weights], strict=True)
        ]
    )


def build(case: dict[str, Any]) -> Any:
    keras = framework(case["framework"])
    layers = keras.layers
    inputs = keras.Input(batch_shape=(ROWS, STEPS, WIDTH), name="x")
    x = layers.Masking(0.0)(inputs) if case["mask"] != "none" else inputs
    cell = {k: case[k] for k in ("activation", "recurrent_activation", "reset_after", "use_bias")}
    run = {k: case[k] for k in "return_sequences return_state stateful go_backwards zero_output_for_mask".split()}
    if case["wrapper"] == "RNN":
        layer = layers.RNN([layers.GRUCell(UNITS, **cell), layers.GRUCell(UNITS, **cell)], **run)
    elif case["wrapper"] == "plain":
        layer = layers.GRU(UNITS, **cell, **run)
    else:
        del run["zero_output_for_mask"]
        layer = layers.Bidirectional(layers.GRU(UNITS, **cell, **run), merge_mode=case["wrapper"])
    y = layer(x)
    outputs = list(y) if isinstance(y, (list, tuple)) else [y]
    model = keras.Model(inputs, outputs)
    randomise(model)
    return model


def listed(y: Any) -> list[np.ndarray]:
    return [np.asarray(v) for v in (y if isinstance(y, (list, tuple)) else [y])]


def assert_close(found: Any, expected: Any) -> None:
    found, expected = listed(found), listed(expected)
    assert [f.shape for f in found] == [e.shape for e in expected]
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == np.float32
        np.testing.assert_allclose(f, e, rtol=0, atol=2e-5 * max(1.0, float(np.abs(e).max(initial=0))))


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.parity(c["framework"]), id=label(c)) for c in CASES],
)
def test_gru(case: dict[str, Any], tmp_path: Path) -> None:
    theirs = build(case)
    path = tmp_path / f"model{case['suffix']}"
    theirs.save(path)
    ours = load(path)
    for seed in (1, 2):  # the second call of a stateful model starts where the first ended
        x = sequences(seed, case["mask"])
        assert_close(ours.predict(x), theirs(x))
