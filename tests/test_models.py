"""Models: predict and its inputs, batches and threads, graphs read from configs, saving, refusals."""

from __future__ import annotations

import copy
import dataclasses
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_layers import normal, weights

from fastgru import formats, layers
from fastgru.formats import FormatError, ModelFile
from fastgru.graph import sample_inputs
from fastgru.loading import load
from fastgru.models import Model, Sequential

GOLDEN = Path(__file__).parent / "golden"
X = normal(4, 6, 3, seed=1)


def small() -> Sequential:
    model = Sequential([layers.Input((None, 3)), layers.GRU(5, return_sequences=True), layers.Dense(2)])
    model.predict(X)
    return model


def entry(class_name: str, name: str, inbound: list[Any] | None = None, **config: Any) -> dict[str, Any]:
    """A layer as Keras 2 writes it."""
    made = {"class_name": class_name, "config": {"name": name, **config}}
    return made if inbound is None else {**made, "name": name, "inbound_nodes": inbound}


def source(name: str, *shape: int | None) -> dict[str, Any]:
    return entry("InputLayer", name, [], batch_input_shape=[None, *shape], dtype="float32")


def functional(
    entries: list[dict[str, Any]], outputs: Any, inputs: Any = None, version: str = "2.11.0", **tensors: Any
) -> Model:
    config = {
        "name": "m",
        "layers": entries,
        "input_layers": inputs or [[e["name"], 0, 0] for e in entries if e["class_name"] == "InputLayer"],
        "output_layers": outputs,
    }
    file = ModelFile("keras-h5", version, {"class_name": "Functional", "config": config}, tensors, (), "m.h5")
    return Model.from_model_file(file)


class TestPredict:
    def test_returns_float32_of_its_own(self) -> None:
        model = functional([source("x", 3)], [["x", 0, 0]])
        x = normal(4, 3)
        y = model.predict(x)
        assert y.dtype == np.float32 and not np.shares_memory(x, y)
        np.testing.assert_array_equal(y, x)

    @pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8, np.bool_])
    def test_dtypes(self, dtype: Any) -> None:
        x = (3 * X).astype(dtype)
        np.testing.assert_array_equal(small_once().predict(x), small_once().predict(x.astype(np.float32)))

    def test_ways_to_give_one_input(self) -> None:
        model = small_once()
        y = model.predict(X)
        np.testing.assert_array_equal(model.predict([X]), y)
        np.testing.assert_array_equal(model.predict(X.tolist()), y)
        np.testing.assert_array_equal(model.predict({"input": X}), y)
        np.testing.assert_array_equal(model.predict(X[:, ::-1])[:, :1], model.predict(X[:, :-2:-1]))
        np.testing.assert_array_equal(model(X), y)

    def test_ranks_as_keras_adjusts_them(self) -> None:
        model = Sequential([layers.Input((None, 1)), layers.GRU(2)])
        x = normal(3, 5)
        np.testing.assert_array_equal(model.predict(x), model.predict(x[..., None]))
        ids = Sequential([layers.Input((None,), "int32"), layers.Embedding(9, 2), layers.GRU(2)])
        z = np.arange(8).reshape(2, 4)
        np.testing.assert_array_equal(ids.predict(z[..., None]), ids.predict(z))

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, None])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_batches_and_threads_change_no_bit(self, size: int | None, threads: int) -> None:
        model = small_once()
        expected = model.predict(X, lengths=[6, 1, 0, 3])
        found = model.predict(X, lengths=[6, 1, 0, 3], batch_size=size, num_threads=threads)
        np.testing.assert_array_equal(found, expected)

    def test_many_rows_are_scored_in_chunks(self) -> None:
        model = small_once()
        x = normal(2500, 4, 3)
        y = model.predict(x)
        np.testing.assert_array_equal(y[1020:1030], model.predict(x[1020:1030]))

    def test_no_rows(self) -> None:
        assert small_once().predict(X[:0]).shape == (0, 6, 2)

    def test_verbose_shows_progress(self, capfd: pytest.CaptureFixture[str]) -> None:
        small_once().predict(X, batch_size=2, verbose=1)
        assert "2/2" in capfd.readouterr().err

    def test_python_threads_share_a_model(self) -> None:
        model = load(GOLDEN / "keras_text_gru.keras")
        assert isinstance(model, Model)
        xs = [np.random.default_rng(i).integers(0, 30, (3, 12)) for i in range(24)]
        expected = [model.predict(x) for x in xs]
        with ThreadPoolExecutor(8) as pool:
            for found, y in zip(pool.map(model.predict, xs * 5), expected * 5, strict=True):
                np.testing.assert_array_equal(found, y)

    def test_threads_that_come_first_build_once(self) -> None:
        model = Sequential([layers.GRU(4)])
        start, found = threading.Barrier(6), []

        def score() -> None:
            start.wait()
            found.append(model.predict(X))

        workers = [threading.Thread(target=score) for _ in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for y in found:
            np.testing.assert_array_equal(y, found[0])

    def test_no_matrix_product_of_numpy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("a scoring call used NumPy's matrix product")

        models = [(m, sample_inputs(m.graph, m.inputs)) for m in keras_goldens()]
        for name in ("matmul", "dot", "einsum", "vdot", "inner", "tensordot"):
            monkeypatch.setattr(np, name, refuse)
        for model, x in models:
            if x is not None:
                model.predict(x if len(x) > 1 else x[0])

    @pytest.mark.parametrize(
        ("x", "error", "message"),
        [
            (X[..., :2], ValueError, r"expected \(N, T, I\) with I = 3, found \(4, 6, 2\)"),
            (X[0, 0], ValueError, r"input 'input': expected \(None, None, 3\), found \(3,\)"),
            (np.array([["a"]]), TypeError, "expected numbers, found <U1"),
            ([X, X], ValueError, "input 'input': expected"),
            ({"y": X}, ValueError, r"x: expected the inputs \['input'\], found \['y'\]"),
            (X.astype(complex), TypeError, "expected numbers, found complex128"),
        ],
    )
    def test_bad_input(self, x: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            small_once().predict(x)

    def test_bad_batch_size(self) -> None:
        with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
            small_once().predict(X, batch_size=0)


class TestSeveral:
    def model(self, outputs: Any = None) -> Model:
        return functional(
            [
                source("b", 6, 3),
                source("a", 6, 3),
                entry("Subtract", "sub", [[["b", 0, 0, {}], ["a", 0, 0, {}]]]),
                entry("Add", "add", [[["b", 0, 0, {}], ["a", 0, 0, {}]]]),
            ],
            outputs or [["add", 0, 0], ["sub", 0, 0]],
        )

    def test_lists_follow_the_file(self) -> None:
        y = self.model().predict([X, 2 * X])
        assert isinstance(y, list)
        np.testing.assert_array_equal(y[0], X + 2 * X)
        np.testing.assert_array_equal(y[1], X - 2 * X)
        np.testing.assert_array_equal(self.model().predict({"a": 2 * X, "b": X})[1], y[1])

    def test_a_declared_dict_gives_a_dict(self) -> None:
        y = self.model({"sum": ["add", 0, 0], "difference": ["sub", 0, 0]}).predict([X, X])
        assert list(y) == ["sum", "difference"] and not y["difference"].any()

    def test_one_declared_output_is_an_array(self) -> None:
        for outputs in ([["sub", 0, 0]], ["sub", 0, 0]):
            assert self.model(outputs).predict([X, X]).shape == X.shape

    def test_masks_are_given_like_inputs(self) -> None:
        model = functional(
            [
                source("b", 6, 3),
                source("a", 6, 3),
                entry("GlobalAveragePooling1D", "p", [[["b", 0, 0, {}]]]),
                entry("GlobalAveragePooling1D", "q", [[["a", 0, 0, {}]]]),
            ],
            [["p", 0, 0], ["q", 0, 0]],
        )
        p, q = model.predict([X, X], lengths=[None, [2, 2, 2, 2]])
        np.testing.assert_allclose(p, X.mean(1), atol=1e-6)
        np.testing.assert_allclose(q, X[:, :2].mean(1), atol=1e-6)
        with pytest.raises(ValueError, match=r"lengths: expected a list or dict of the inputs \['b', 'a'\]"):
            model.predict([X, X], lengths=[2, 2, 2, 2])

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (X, r"x: expected a list or dict of the inputs \['b', 'a'\], found ndarray"),
            ([X], "found 1 of them"),
            ({"a": X}, r"expected the inputs \['b', 'a'\], found \['a'\]"),
            ([X, X[:2]], "expected one number of rows for all inputs, found 4 and 2 in 'a'"),
        ],
    )
    def test_bad_input(self, x: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.model().predict(x)


class TestGraph:
    def test_dead_nodes_are_dropped_before_they_can_refuse(self) -> None:
        model = functional(
            [
                source("x", 3),
                entry("Lambda", "code", [[["x", 0, 0, {}]]], function="…"),
                entry("Mystery", "what", [[["code", 0, 0, {}]]]),
                entry("Flatten", "f", [[["x", 0, 0, {}]]]),
            ],
            [["f", 0, 0]],
        )
        assert [layer.name for layer in model.layers] == ["x", "f"]
        assert model.predict(normal(2, 3)).shape == (2, 3)

    def test_a_shared_layer_runs_once_for_each_call(self) -> None:
        kernel, bias = normal(3, 3), normal(3)
        model = functional(
            [source("x", 3), entry("Dense", "d", [[["x", 0, 0, {}]], [["d", 0, 0, {}]]], units=3)],
            [["d", 1, 0]],
            **{"d/kernel": kernel, "d/bias": bias},
        )
        x = normal(2, 3, seed=4)
        np.testing.assert_allclose(model.predict(x), (x @ kernel + bias) @ kernel + bias, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("base", [0, 1])
    def test_calls_of_nested_models_count_from_0_or_1(self, base: int) -> None:
        inner = {
            "name": "inner",
            "layers": [source("i", 3), entry("Activation", "t", [[["i", 0, 0, {}]]], activation="tanh")],
            "input_layers": [["i", 0, 0]],
            "output_layers": [["t", 0, 0]],
        }
        nested = {
            "class_name": "Model",
            "config": inner,
            "name": "inner",
            "inbound_nodes": [[["x", 0, 0, {}]], [["inner", base, 0, {}]]],
        }
        model = functional([source("x", 3), nested], [["inner", base, 0], ["inner", base + 1, 0]])
        x = normal(2, 3)
        once, twice = model.predict(x)
        np.testing.assert_allclose(once, np.tanh(x), atol=1e-6)
        np.testing.assert_allclose(twice, np.tanh(np.tanh(x)), atol=1e-6)

    def test_thousands_of_layers(self) -> None:
        entries = [source("l0", 3)]
        entries += [entry("Dropout", f"l{i}", [[[f"l{i - 1}", 0, 0, {}]]], rate=0.1) for i in range(1, 3000)]
        x = normal(2, 3)
        np.testing.assert_array_equal(functional(entries[::-1], [["l2999", 0, 0]]).predict(x), x)

    @pytest.mark.parametrize(
        ("entries", "outputs", "message"),
        [
            ([source("x", 3), entry("Flatten", "f", [[["g", 0, 0, {}]]])], ["f", 0, 0], "expected a known layer"),
            ([source("x", 3), entry("Flatten", "f", [[["x", 0, 0, {}]]])], ["f", 1, 0], "expected call 1, found 1"),
            ([source("x", 3), entry("Flatten", "f", [[["x", 0, 0, {}]]])], ["f", 0, 1], "returns 1 outputs"),
            ([source("x", 3), entry("Flatten", "f", [[["x", 0, 1, {}]]])], ["f", 0, 0], "'x' is one tensor"),
            (
                [
                    source("x", 3),
                    entry("Flatten", "f", [[["g", 0, 0, {}]]]),
                    entry("Flatten", "g", [[["f", 0, 0, {}]]]),
                ],
                ["f", 0, 0],
                "form a loop",
            ),
            ([source("x", 3), source("x", 3)], ["x", 0, 0], "'x' twice"),
            ([source("x", 3)], [], r"output_layers: expected at least one \[layer, call, tensor\]"),
            (
                [source("x", 2, 3), entry("GRU", "g", [[["x", 0, 0, {"constants": [["x", 0, 0]]}]]], units=2)],
                ["g", 0, 0],
                "call argument 'constants' is not supported",
            ),
        ],
    )
    def test_bad_graphs(self, entries: list[Any], outputs: Any, message: str) -> None:
        with pytest.raises(FormatError, match=rf"m\.h5: model 'm': .*{message}"):
            functional(entries, outputs)


class TestRefusals:
    @pytest.mark.parametrize(
        ("one", "message"),
        [
            (entry("Lambda", "code"), r"layer 'code' \(Lambda\) holds Python code .* nothing from a file is executed"),
            (entry("LSTM", "l", units=3), r"layer 'l' has the class LSTM, which is not supported; supported are Act"),
            (
                {**entry("GRU", "g", units=3), "module": "evil.layers"},
                r"layer 'g' has the class evil\.layers\.GRU, which is not supported",
            ),
            (
                {**entry("Dense", "d", units=3), "registered_name": "Custom>Dense"},
                "layer 'd' has the class Dense, which is not supported",
            ),
            (entry("TFOpLambda", "op", function="linalg.svd"), "operation 'linalg.svd', which is not supported"),
            (entry("Dense", "d"), r"layer 'd' \(Dense\): its config is not one that Keras writes: key 'units'"),
            (entry("Dense", "d", units="many"), r"layer 'd' \(Dense\): its config is not one that Keras writes"),
        ],
    )
    def test_layer(self, one: dict[str, Any], message: str) -> None:
        config = {"class_name": "Sequential", "config": {"name": "s", "layers": [one]}}
        with pytest.raises(FormatError, match=rf"^m\.h5: .*{message}"):
            Model.from_model_file(ModelFile("keras-h5", "2.3.1", config, {}, (), "m.h5"))

    def test_nothing_is_imported_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import importlib

        monkeypatch.setattr(importlib, "import_module", lambda *_: pytest.fail("imported by name"))
        config = {"module": "os", "class_name": "system", "config": {"name": "x"}, "registered_name": "os>system"}
        with pytest.raises(FormatError, match=r"class os\.system, which is not supported"):
            functional([source("x", 3), {**config, "name": "s", "inbound_nodes": [[["x", 0, 0, {}]]]}], ["s", 0, 0])

    def test_endless_nesting(self) -> None:
        deep: dict[str, Any] = entry("Dense", "d", units=1)
        for _ in range(3000):
            deep = {"class_name": "Sequential", "config": {"name": "s", "layers": [deep]}}
        with pytest.raises(FormatError, match="endless nesting"):
            Model.from_model_file(ModelFile("keras-h5", "2.3.1", deep, {}, (), "m.h5"))

    def test_not_a_model(self) -> None:
        with pytest.raises(FormatError, match="expected a Sequential or Functional model, found 'Dense'"):
            Model.from_model_file(ModelFile("keras-h5", "", entry("Dense", "d", units=1), {"d/kernel": X}, (), "m.h5"))
        with pytest.raises(FormatError, match="found only tensors"):
            Model.from_model_file(ModelFile("pytorch-zip", "", None, {}, (), "m.pt"))

    def test_configs_that_lie_are_format_errors(self) -> None:
        """Random edits of real configs load, or are refused; no other exception comes out."""
        pick = random.Random(20240501)
        values = [None, True, -1, 0, 7, 3.5, "x", "GRU", [], {}, [1, 2], 1e400, "linear", 10**9, ["a", 0, 0]]
        files = [f for f in golden_files() if f.config is not None]
        for _ in range(400):
            file = pick.choice(files)
            config: Any = copy.deepcopy(file.config)
            *path, last = pick.choice([p for p in places(config) if p])
            spot = config
            for key in path:
                spot = spot[key]
            spot[last] = pick.choice(values)
            try:
                Model.from_model_file(dataclasses.replace(file, config=config))
            except FormatError:
                continue


class TestSaving:
    @pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.keras")) + sorted(GOLDEN.glob("*.h5")), ids=lambda p: p.name)
    def test_golden(self, file: Path, tmp_path: Path) -> None:
        model = load(file)
        assert isinstance(model, Model)
        model.save(tmp_path / "m.safetensors")
        copied = load(tmp_path / "m.safetensors")
        assert isinstance(copied, Model)
        x = sample_inputs(model.graph, model.inputs)
        if x is None:
            return
        for a, b in zip(listed(model.predict(x)), listed(copied.predict(x)), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_made_by_hand(self, tmp_path: Path) -> None:
        every = [
            layers.Embedding(9, 4, mask_zero=True),
            layers.Dropout(0.1),
            layers.Bidirectional(layers.GRU(3, recurrent_activation="hard_sigmoid", return_sequences=True), "sum"),
            layers.RNN([layers.GRUCell(4), layers.GRUCell(3, reset_after=False)], return_sequences=True),
            layers.TimeDistributed(layers.Dense(3, activation=("leaky_relu", 0.1, 0.0))),
            layers.LayerNormalization(),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.LeakyReLU(),
            layers.ELU(),
            layers.PReLU(shared_axes=[1]),
            layers.GRU(4, update_gate="new", return_sequences=True, reset_after=False),
            layers.GlobalAveragePooling1D(),
            layers.RepeatVector(2),
            layers.Permute((2, 1)),
            layers.Reshape((8,)),
            layers.Softmax(),
        ]
        model = Sequential(every, name="all")
        x = np.random.default_rng(0).integers(1, 9, (3, 5))
        y = model.predict(x)
        model.save(tmp_path / "m.safetensors")
        copied = load(tmp_path / "m.safetensors")
        assert isinstance(copied, Sequential)
        np.testing.assert_array_equal(copied.predict(x), y)
        assert [v.name for v in copied.layers] == [v.name for v in model.layers]

    def test_summary(self) -> None:
        lines: list[str] = []
        small_once().summary(lines.append)
        text = "\n".join(lines)
        assert "gru    GRU    3 → 5, reset_after; return_sequences" in text
        assert lines[-1] == f"Parameters: {3 * 15 + 5 * 15 + 30 + 12}"


class TestByHand:
    def test_names(self) -> None:
        model = Sequential([layers.GRU(2, return_sequences=True), layers.GRU(2), layers.Dense(1)])
        assert [v.name for v in model.layers] == ["gru", "gru_1", "dense"]
        assert model.get_layer("gru_1") is model.layers[1]
        with pytest.raises(ValueError, match=r"expected one of \['gru', 'gru_1', 'dense'\], found 'lstm'"):
            model.get_layer("lstm")

    def test_errors(self) -> None:
        with pytest.raises(TypeError, match="add: expected a layer, found int"):
            Sequential([3])  # type: ignore[list-item]  # the mistake under test
        with pytest.raises(ValueError, match="expected layer names that differ, found 'a' twice"):
            Sequential([layers.Dense(1, name="a"), layers.Dense(1, name="a")])
        with pytest.raises(ValueError, match="expected Input as the first layer"):
            Sequential([layers.Dense(1), layers.Input((3,))])

    def test_weights_come_and_go_in_keras_order(self) -> None:
        gru = layers.GRU(5)
        gru.set_weights(weights())
        model = Sequential([gru, layers.Dense(1)])
        model.predict(X)
        assert [w.shape for w in model.get_weights()] == [(3, 15), (5, 15), (2, 15), (5, 1), (1,)]
        other = Sequential([layers.GRU(5), layers.Dense(1)])
        other.set_weights(model.get_weights())
        np.testing.assert_array_equal(other.predict(X), model.predict(X))

    def test_stateful(self) -> None:
        model = Sequential([layers.GRU(3, stateful=True, return_sequences=True), layers.Dense(1)])
        first, second = model.predict(X[:, :3]), model.predict(X[:, 3:])
        model.reset_states()
        whole = model.predict(X)
        np.testing.assert_array_equal(np.concatenate([first, second], 1), whole)


_SMALL: list[Sequential] = []


def small_once() -> Sequential:
    if not _SMALL:
        _SMALL.append(small())
    return _SMALL[0]


def golden_files() -> list[ModelFile]:
    return [formats.read(p) for p in sorted([*GOLDEN.glob("*.keras"), *GOLDEN.glob("*.h5")])]


def keras_goldens() -> list[Model]:
    return [Model.from_model_file(f) for f in golden_files()]


def listed(y: Any) -> list[np.ndarray]:
    return list(y.values()) if isinstance(y, dict) else y if isinstance(y, list) else [y]


def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], (*path, index))
