"""The compiled core: time and row loops, threads, workspaces, packing. Use `fastgru.ops` and `fastgru.nn`."""

from importlib.util import find_spec

if find_spec("fastgru._core.isa") is None:
    raise ImportError(
        "fastgru is imported from its source folder, where it is not compiled: run `python -m pip install -e .` there, "
        "or start Python in another folder to use an installed fastgru"
    )
