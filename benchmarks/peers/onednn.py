"""oneDNN, the library under several frameworks, without a framework: a C++ driver, called without arguments to convert.

Needs its headers (Debian: libdnnl-dev) and a C++ compiler. It knows no lengths: ragged rows cost it all steps.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from pathlib import Path

import native
import numpy as np
import shapes

NAME = "oneDNN"
CONFIGURATIONS = ("prepacked weights", "plain weights")
COUNTED = True


def load() -> ctypes.CDLL:
    library = native.library(Path(__file__).parent / "onednn_driver.cpp", "-std=c++14", "-ldnnl")
    library.gru_new.restype = ctypes.c_void_p
    library.gru_buffer.restype = ctypes.POINTER(ctypes.c_float)
    library.gru_buffer.argtypes = library.gru_call.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.trainer_new.restype = ctypes.c_void_p
    library.trainer_buffer.restype = ctypes.POINTER(ctypes.c_float)
    library.trainer_buffer.argtypes = [ctypes.c_void_p, ctypes.c_int]
    for freed in (library.gru_delete, library.trainer_delete, library.trainer_call):
        freed.argtypes = [ctypes.c_void_p]
    return library


def version() -> str:
    return ".".join(map(str, (ctypes.c_int * 3).in_dll(load(), "onednn_version")))


def prepare(case: shapes.Case, threads: int, configuration: str) -> shapes.Run:
    if not case.reset_after:
        raise NotImplementedError("lbr_gru resets after the product")
    library = load()
    floats, number = ctypes.POINTER(ctypes.c_float), ctypes.c_long
    weight_ih, weight_hh, bias = [], [], []
    for layer in shapes.layers(case):
        w, u, b, c = (shapes.swap_gates(a) for a in layer)
        weight_ih.append(w.T.copy())
        weight_hh.append(u.T.copy())
        bias.append(np.concatenate([b[: 2 * case.H] + c[: 2 * case.H], b[2 * case.H :], c[2 * case.H :]]))
    given = [np.concatenate(a).astype(np.float32) for a in (weight_ih, weight_hh, bias)]
    sizes = [number(n) for n in (case.layers, case.N, case.T, case.I, case.H)]
    pointers = [a.ctypes.data_as(floats) for a in given]
    prepacked = int(configuration == "prepacked weights")
    if case.kind == "training":
        dy = shapes.gradient(case).swapaxes(0, 1).copy()
        return training(case, library, library.trainer_new(*sizes[1:], *pointers, dy.ctypes.data_as(floats), prepacked))
    gru = library.gru_new(*sizes, *pointers, prepacked)
    if not gru:
        raise RuntimeError("oneDNN has no such GRU")
    x = np.ctypeslib.as_array(library.gru_buffer(gru, 0), (case.T, case.N, case.I))
    y = np.ctypeslib.as_array(library.gru_buffer(gru, 1), (case.T, case.N, case.H))
    call = functools.partial(library.gru_call, ctypes.c_void_p(gru), ctypes.c_int(case.kind == "step"))
    weakref.finalize(call, library.gru_delete, gru)
    return shapes.Run(
        lambda new: np.copyto(x, new.swapaxes(0, 1)),
        call,
        lambda _: y.swapaxes(0, 1),
        lambda: np.ctypeslib.as_array(library.gru_buffer(gru, 2), (case.N, case.H)),
    )


def training(case: shapes.Case, library: ctypes.CDLL, trainer: int | None) -> shapes.Run:
    if not trainer:
        raise RuntimeError("oneDNN has no such GRU backward")
    x = np.ctypeslib.as_array(library.trainer_buffer(trainer, 0), (case.T, case.N, case.I))
    call = functools.partial(library.trainer_call, ctypes.c_void_p(trainer))
    weakref.finalize(call, library.trainer_delete, trainer)

    def output(_: object) -> tuple[shapes.F32, shapes.F32]:
        dx = np.ctypeslib.as_array(library.trainer_buffer(trainer, 1), x.shape).swapaxes(0, 1)
        dweight = np.ctypeslib.as_array(library.trainer_buffer(trainer, 2), (case.H, 3 * case.H))
        return dx, shapes.swap_gates(dweight.T)

    return shapes.Run(lambda new: np.copyto(x, new.swapaxes(0, 1)), call, output)
