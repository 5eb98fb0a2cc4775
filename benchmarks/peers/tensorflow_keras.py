"""Keras on TensorFlow: the model in a tf.function, and model.predict, which is what most programs call."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import shapes

NAME = "TensorFlow / Keras"
CONFIGURATIONS = ("tf.function", "predict")
COUNTED = True


def version() -> str:
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="")
    import keras
    import tensorflow

    return f"{tensorflow.__version__} / {keras.__version__}"


def prepare(case: shapes.Case, threads: int, configuration: str) -> shapes.Run:
    import keras
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    step = case.kind == "step"
    model = keras.Sequential([keras.Input((case.T, case.I), batch_size=case.N)])
    if case.kind == "ragged":
        model.add(keras.layers.Masking(-1.0))
    for weight_ih, weight_hh, b, c in shapes.layers(case):
        layer = keras.layers.GRU(
            case.H, return_sequences=True, reset_after=case.reset_after, stateful=step, unroll=step
        )
        model.add(layer)
        swapped = [shapes.swap_gates(a) for a in (weight_ih, weight_hh, b, c)]
        layer.set_weights([swapped[0].T, swapped[1].T, np.stack(swapped[2:]) if case.reset_after else sum(swapped[2:])])
    x = np.zeros((case.N, case.T, case.I), np.float32)
    tensor = [tf.constant(x)]
    lengths = shapes.lengths(case)
    padding = np.zeros((case.N, case.T), bool) if lengths is None else np.arange(case.T) >= lengths[:, None]
    run = tf.function(model, reduce_retracing=True)
    if case.kind == "training":
        shapes.only("tf.function", configuration)
        dy = tf.constant(shapes.gradient(case))

        @tf.function
        def gradients(x: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = model(x, training=True)
            return tape.gradient(y, [x, *model.trainable_variables], output_gradients=dy)

        run = gradients

    def feed(new: shapes.F32) -> None:
        np.copyto(x, new)
        x[padding] = -1.0
        tensor[0] = tf.constant(x)

    def call() -> Any:
        if configuration == "predict":
            return model.predict(x, batch_size=case.N, verbose=0)
        return run(tensor[0])

    if case.kind == "training":
        return shapes.Run(feed, call, lambda g: (np.asarray(g[0]), shapes.swap_gates(np.asarray(g[2]).T)))
    state = (lambda: np.asarray(layer.states[0])) if step else None
    return shapes.Run(feed, call, np.asarray, state)
