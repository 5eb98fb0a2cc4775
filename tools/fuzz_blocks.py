"""Which blocks of some packages have run: a probe of one byte stands at the head of each, put there at import.

sys.settrace would make the readers ten to thirty times slower; a probe costs some nanoseconds.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

HITS = bytearray(1 << 16)
"""One byte for each block; only as many as `count()` are in use."""

_FLAG = "__fuzz_hits__"
_made = 0


def count() -> int:
    """Return how many blocks there are."""
    return _made


def seen() -> int:
    """Return how many blocks have run."""
    return len(HITS) - HITS.count(0)


def reset() -> None:
    """Forget what has run."""
    HITS[:] = bytes(len(HITS))


def watch(*packages: str) -> None:
    """Put probes into these packages, which must not be imported yet.

    Raises
    ------
    RuntimeError
        If one is.
    """
    early = [name for name in packages if name in sys.modules]
    if early:
        raise RuntimeError(f"expected {', '.join(early)} not to be imported before its probes are set")
    sys.meta_path.insert(0, _Finder(packages))


class _Probes(ast.NodeTransformer):
    """Puts `__fuzz_hits__[n] = 1` at the head of every block inside functions."""

    def __init__(self) -> None:
        self._depth = 0

    def visit_FunctionDef(self, node: Any) -> Any:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1
        # after the docstring
        first = node.body[0]
        documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        node.body[int(documented) : int(documented)] = [self._probe(first)]
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def generic_visit(self, node: Any) -> Any:
        super().generic_visit(node)
        branches = isinstance(node, (ast.If, ast.For, ast.While, ast.Try, ast.ExceptHandler, ast.With, ast.match_case))
        if self._depth and branches:
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if block:
                    block.insert(0, self._probe(block[0]))
        return node

    def _probe(self, before: ast.stmt) -> ast.stmt:
        global _made
        if _made >= len(HITS):
            raise RuntimeError("more blocks than HITS has room for")
        probe = ast.parse(f"{_FLAG}[{_made}] = 1").body[0]
        _made += 1
        for part in ast.walk(probe):
            ast.copy_location(part, before)
        return probe


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)  # the source itself: what is compiled already has no probes
        tree = _Probes().visit(ast.parse(self.get_data(path), path))
        code: CodeType = compile(tree, path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[_FLAG] = HITS
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, packages: tuple[str, ...]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if not any(fullname == name or fullname.startswith(name + ".") for name in self._packages):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec
