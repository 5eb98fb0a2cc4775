"""JAX: a jitted scan over time; the inputs projected step by step inside it, or all ahead in one product."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapes

NAME = "JAX"
CONFIGURATIONS = ("inputs inside", "inputs ahead")
COUNTED = True


def version() -> str:
    import jax

    return str(jax.__version__)


def prepare(case: shapes.Case, threads: int, configuration: str) -> shapes.Run:
    import jax
    from jax import lax
    from jax import numpy as jnp

    layers = [(w.T.copy(), u.T.copy(), b, c) for w, u, b, c in shapes.layers(case)]
    weights = jax.device_put(layers)
    ahead = configuration == "inputs ahead"

    def equations(x: Any, h0: Any, weights: Any) -> Any:
        for w, u, b, c in weights:

            def step(h: Any, x: Any, w: Any = w, u: Any = u, b: Any = b, c: Any = c) -> Any:
                x_r, x_z, x_n = jnp.split(x if ahead else x @ w + b, 3, axis=1)
                h_r, h_z, h_n = jnp.split(h @ u + c, 3, axis=1)
                z = jax.nn.sigmoid(x_z + h_z)
                n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
                h = n + z * (h - n)
                return h, h

            h, x = lax.scan(step, h0, x @ w + b if ahead else x)
        return x, h

    zeros = jnp.zeros((case.N, case.H))

    def gradients(x: Any, h0: Any, weights: Any) -> Any:
        _, back = jax.vjp(lambda x, weights: equations(x, zeros, weights)[0], x, weights)
        return back(dy)

    training = case.kind == "training"
    dy = jax.device_put(shapes.gradient(case).swapaxes(0, 1).copy()) if training else None
    run = jax.jit(gradients if training else equations)
    x = [jnp.zeros((case.T, case.N, case.I))]
    state = [jnp.zeros((case.N, case.H))]

    def feed(new: shapes.F32) -> None:  # its arrays never change: a new one, made before the clock starts
        x[0] = jax.device_put(np.ascontiguousarray(new.swapaxes(0, 1))).block_until_ready()

    def call() -> Any:
        y, h = jax.block_until_ready(run(x[0], state[0], weights))
        if case.kind == "step":
            state[0] = h
        return (y, h) if training else y

    if training:
        return shapes.Run(feed, call, lambda g: (np.asarray(g[0]).swapaxes(0, 1), np.asarray(g[1][0][1]).T))
    return shapes.Run(feed, call, lambda y: np.asarray(y).swapaxes(0, 1), lambda: np.asarray(state[0]))
