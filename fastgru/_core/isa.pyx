"""Which instruction set runs, what its kernels are asked for by name, and how many threads may be used."""

import math
import os

from libc.stdint cimport int32_t, int64_t

from fastgru._core.cpus import affinity, default_num_threads
from fastgru._core.table cimport fg_isa, fg_isa_count, fg_isa_runs, fg_isa_trusted

cdef extern from *:
    """
    #ifdef _OPENMP
    #define FG_OPENMP 1
    #else
    #define FG_OPENMP 0
    #endif
    #if defined(__clang__)
    #define FG_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define FG_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
    #define FG_TEXT_(x) #x
    #define FG_TEXT(x) FG_TEXT_(x)
    #define FG_COMPILER "msvc " FG_TEXT(_MSC_VER)
    #else
    #define FG_COMPILER "unknown"
    #endif
    """
    const int FG_OPENMP
    const char *FG_COMPILER

OPENMP = bool(FG_OPENMP)
COMPILER = FG_COMPILER.decode()

# name -> (kind of enum fg_activation in table.h, default alpha, default beta); alpha None: must be given
ACTIVATIONS = {
    "linear": (0, 0.0, 0.0),
    "sigmoid": (1, 0.0, 0.0),
    "tanh": (2, 0.0, 0.0),
    "hard_sigmoid": (3, 0.2, 0.5),
    "relu": (4, 0.0, 0.0),
    "softsign": (5, 0.0, 0.0),
    "elu": (6, 1.0, 0.0),
    "selu": (7, 0.0, 0.0),
    "softplus": (8, 0.0, 0.0),
    "affine": (9, None, None),
    "leaky_relu": (10, 0.01, 0.0),
    "thresholded_relu": (11, None, 0.0),
    "scaled_tanh": (12, None, None),
}

# Below this many fused multiply-adds (about 40 µs of one core) waking a second thread costs more than it saves.
cdef double PARALLEL_WORK = 2e6

# OpenMP ends the process where it can't make a thread; more than there are processors gains nothing. Asked once: it
# takes os.cpu_count longer to answer than a small step takes.
MOST_THREADS = max(os.cpu_count() or 1, 64)

cdef int64_t _num_threads = 0
cdef bint _asked = False               # by set_num_threads
cdef bint _forked = False


def isa_names():
    """Instruction sets compiled into this build that this machine can run, best first."""
    return tuple(fg_isa(i).name.decode() for i in range(fg_isa_count()) if fg_isa_runs(fg_isa(i)))


def _compiled():
    return tuple(fg_isa(i).name.decode() for i in range(fg_isa_count()))


def _choose():
    wanted = os.environ.get("FASTGRU_ISA", "")
    if wanted:
        if wanted not in isa_names():
            why = "this build has it, but this CPU or operating system can't run it"
            if wanted not in _compiled():
                why = "this build does not have it"
            raise ImportError(
                f"FASTGRU_ISA={wanted}: {why}; it can run: {', '.join(isa_names())}. Unset FASTGRU_ISA to let fastgru choose."
            )
        return wanted
    for i in range(fg_isa_count()):
        if fg_isa_runs(fg_isa(i)) and fg_isa_trusted(fg_isa(i)):
            return fg_isa(i).name.decode()
    raise ImportError("no instruction set of this build runs here: rebuild fastgru from source")


DEFAULT_ISA = _choose()


cdef const fg_table *find(object name) except NULL:
    """The table called `name`, or the chosen one for None."""
    cdef int i
    if name is None:
        name = DEFAULT_ISA
    for i in range(fg_isa_count()):
        if fg_isa(i).name.decode() == name:
            if not fg_isa_runs(fg_isa(i)):
                break
            return fg_isa(i)
    raise ValueError(f"isa: expected one of {', '.join(isa_names())}, found {name!r}")


def width(name=None):
    """Floats in one vector of an instruction set."""
    return find(name).width


cdef fg_act parse_activation(object activation) except *:
    """An activation's name, or (name, alpha, beta), in the kernels' terms."""
    cdef fg_act act
    name, given = activation, ()
    if isinstance(activation, (tuple, list)) and activation:
        name, given = activation[0], tuple(activation[1:])
    if not isinstance(name, str) or name not in ACTIVATIONS or len(given) > 2:
        raise ValueError(
            f"activation: expected a name or (name, alpha, beta) with a name out of {', '.join(ACTIVATIONS)}, found {activation!r}"
        )
    kind, *defaults = ACTIVATIONS[name]
    values = [*given, *defaults[len(given):]]
    if None in values[len(given):]:
        raise ValueError(f"activation: {name} has no usual parameters, give ({name!r}, alpha, beta)")
    try:
        act.kind, act.alpha, act.beta = kind, float(values[0]), float(values[1])
        if not (math.isfinite(act.alpha) and math.isfinite(act.beta)):
            raise ValueError
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"activation: alpha and beta of {name} must be finite numbers, found {activation!r}") from None
    return act


def check_activation(activation):
    """Raise ValueError unless the kernels know `activation`; return (name, alpha, beta)."""
    cdef fg_act act = parse_activation(activation)
    name = activation if isinstance(activation, str) else activation[0]
    return name, act.alpha, act.beta


# --- threads ---------------------------------------------------------------------------------------------------------

def check_num_threads(num_threads):
    """Raise unless `num_threads` is a whole number >= 1."""
    if isinstance(num_threads, bool) or not hasattr(num_threads, "__index__"):
        raise TypeError(f"num_threads: expected a whole number >= 1 or None, found {num_threads!r}")
    num_threads = num_threads.__index__()
    if num_threads < 1:
        raise ValueError(f"num_threads: expected a whole number >= 1 or None, found {num_threads}")
    return min(num_threads, MOST_THREADS)


def set_num_threads(num_threads):
    """Set how many threads a call may use when it doesn't say so itself.

    Parameters
    ----------
    num_threads : int >= 1
        A call still uses fewer when it has too few rows or too little work. After a fork the child always runs with one
        thread: the OpenMP runtime does not survive a fork.
    """
    global _asked, _num_threads
    _num_threads = check_num_threads(num_threads)
    _asked = True


def get_num_threads():
    """How many threads a call may use when it doesn't say so itself (see `set_num_threads`)."""
    return 1 if _forked else _num_threads


def _after_fork():
    global _forked
    _forked = True


_num_threads = default_num_threads()  # without OpenMP too: what can't be is refused alike
if not OPENMP:
    _num_threads = 1
if hasattr(os, "register_at_fork"):
    # libgomp's threads are gone in the child, yet it would wait for them for ever
    os.register_at_fork(after_in_child=_after_fork)


cdef int64_t threads_for(object num_threads, int64_t parts, double work) except -1:
    """Threads for `work` multiply-adds in at most `parts` independent parts."""
    cdef int64_t n = _num_threads
    if num_threads is not None:
        n = check_num_threads(num_threads)
    if _forked or not FG_OPENMP or work < PARALLEL_WORK:
        return 1
    n = min(n, parts)
    if n > 1 and not _asked and num_threads is None:
        # nobody named a number: threads pinned after import must not fight each other for one core
        n = min(n, <int64_t>affinity())
    return max(n, 1)
