"""Train a GRU to tell three kinds of noisy ramps apart, fine-tune it, and save it.

``python examples/train.py FOLDER`` only writes the same data as FOLDER/train.csv and FOLDER/test.csv:
``examples/ramps`` for examples/train.toml.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import fastgru
from fastgru import Sequential, layers
from fastgru.training import callbacks, optimizers


def ramps(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of 8 steps and 2 features on a line that rises (class 0), falls (1) or is flat (2)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    lines = np.stack([np.linspace(0, 1, 8), np.linspace(1, 0, 8), np.full(8, 0.5)])
    x = lines[y][:, :, None] + 0.3 * rng.standard_normal((rows, 8, 2))
    return x.astype(np.float32), y


def write(folder: Path) -> None:
    """A row a line: the features of a step stand side by side, the class is last."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{feature}{step}" for step in range(8) for feature in "ab"]
    for name, rows, seed in (("train", 400, 0), ("test", 200, 1)):
        x, y = ramps(rows, seed)
        lines = [",".join([*(f"{v:.4f}" for v in row.ravel()), str(c)]) for row, c in zip(x, y, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join([",".join([*names, "class"]), *lines]) + "\n")
        print(f"{folder / name}.csv: {rows} rows")


def main() -> None:
    (x, y), (x_test, y_test) = ramps(400, 0), ramps(200, 1)
    model = Sequential([layers.GRU(16), layers.Dense(3, activation="softmax")])
    model.compile(optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy", "f1", "auc"])
    stop = callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True)
    model.fit(x, y, epochs=15, validation_split=0.2, callbacks=[stop], seed=0, verbose=0)
    print("test:", {name: round(value, 3) for name, value in model.evaluate(x_test, y_test, return_dict=True).items()})

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "ramps.safetensors")
        tuned = fastgru.load(Path(folder) / "ramps.safetensors")
    tuned.layers[0].trainable = False  # only the last layer learns
    tuned.compile(optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    tuned.fit(x, y, epochs=3, seed=1, verbose=0)
    print("fine-tuned:", tuned.evaluate(x_test, y_test, return_dict=True)["accuracy"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    else:
        main()
