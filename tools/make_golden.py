"""Write the golden files of tests/golden with the frameworks themselves.

Each file NAME.EXT gets a NAME.expected.npz: the inputs x0, x1, …, the framework's own outputs y0, y1, …, and what
wrote them (`versions`). The script never imports fastgru: a golden file is what a framework says, not what we say.

    python tools/make_golden.py OUT_DIR [GROUP ...]

Groups: keras3, tfkeras, tf213 (run in an environment of its own with tensorflow-cpu 2.13), torch, synthetic (h5py
only: layouts of Keras releases that no longer install, written from their documented format).
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any, Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np

SEED = 20240229


def rng(salt: int = 0) -> np.random.Generator:
    return np.random.default_rng(SEED + salt)


def normal(*shape: int, salt: int = 0) -> np.ndarray:
    return rng(salt).standard_normal(shape).astype(np.float32)


def save_expected(out: Path, name: str, versions: dict[str, str], **arrays: Any) -> None:
    """Write NAME.expected.npz; `versions` becomes one array of "key=value" strings."""
    lines = [f"python={platform.python_version()}", f"numpy={np.__version__}"]
    lines += [f"{key}={value}" for key, value in versions.items()]
    np.savez_compressed(out / f"{name}.expected.npz", versions=np.array(lines), **arrays)


def numbered(prefix: str, values: Any) -> dict[str, np.ndarray]:
    values = values if isinstance(values, (list, tuple)) else [values]
    return {f"{prefix}{i}": np.asarray(value) for i, value in enumerate(values)}


# ------------------------------------------------------------------------------------------------ Keras 3


def keras3_text_gru(out: Path) -> None:
    """The demo's Keras model: trained a little, saved with its optimiser as `model.save` does."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            layers.Embedding(50, 16),
            layers.GRU(24, return_sequences=True),
            layers.Dropout(0.2),
            layers.GRU(16),
            layers.Dense(4, activation="softmax"),
        ],
        name="text_gru",
    )
    ids = rng().integers(0, 50, (256, 12)).astype(np.int32)
    target = (ids[:, -3:].sum(axis=1) % 4).astype(np.int32)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(ids, target, epochs=3, batch_size=32, verbose=0)
    save_keras(out, "keras_text_gru", model, ids[:16], ".keras")


def keras3_reset(out: Path) -> None:
    """Both placements of the reset gate, the biases made non-zero."""
    import keras

    for name, after in (("keras_reset_before", False), ("keras_reset_after", True)):
        keras.utils.set_random_seed(SEED + after)
        gru = keras.layers.GRU(
            20, reset_after=after, return_sequences=True, bias_initializer="random_normal"
        )
        model = keras.Sequential([keras.Input((9, 7)), gru, keras.layers.Dense(3)], name="net")
        save_keras(out, name, model, normal(5, 9, 7), ".keras")


def save_keras(out: Path, name: str, model: Any, x: Any, *suffixes: str, **more: Any) -> None:
    """Save `model` under each suffix and record what `model.predict` gives for x."""
    import keras

    y = model.predict(x, verbose=0)
    for suffix in suffixes:
        model.save(out / f"{name}{suffix}")
    versions = {"writer": "keras", "keras": keras.__version__}
    if hasattr(keras, "config") and hasattr(keras.config, "backend"):
        versions["backend"] = keras.config.backend()
    y = list(y.values()) if isinstance(y, dict) else y
    x = list(x.values()) if isinstance(x, dict) else x
    save_expected(out, name, versions, **numbered("x", x), **numbered("y", y), **more)


# ------------------------------------------------------------------------------------------------ PyTorch


def torch_bigru(out: Path) -> None:
    """The demo's PyTorch model: two layers, both directions, trained a little."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    gru = torch.nn.GRU(8, 16, num_layers=2, bidirectional=True, batch_first=True)
    head = torch.nn.Linear(32, 1)
    optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=0.01)
    for step in range(30):
        x = torch.from_numpy(normal(32, 11, 8, salt=step))
        loss = torch.nn.functional.mse_loss(head(gru(x)[0])[..., 0], x.cumsum(1).mean(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(gru.state_dict(), out / "torch_bigru.pt")
    x, h0 = torch.from_numpy(normal(6, 11, 8, salt=99)), torch.from_numpy(normal(4, 6, 16, salt=98))
    with torch.no_grad():
        y, h_n = gru(x, h0)
    versions = {"writer": "torch", "torch": torch.__version__}
    save_expected(out, "torch_bigru", versions, x=x, h0=h0, y=y, h_n=h_n)


GROUPS: dict[str, list[Callable[[Path], None]]] = {
    "keras3": [keras3_text_gru, keras3_reset],
    "torch": [torch_bigru],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for group in arguments.groups or GROUPS:
        for make in GROUPS[group]:
            print(f"{group}: {make.__name__}", flush=True)
            make(arguments.out)


if __name__ == "__main__":
    main()
