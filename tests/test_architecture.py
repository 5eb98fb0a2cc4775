"""Who may import whom: down only, as docs/architecture.md says. Imports inside functions count."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastgru

PACKAGE = Path(fastgru.__file__).parent

# Lowest first. A room imports from lower rows only; rooms of one row don't know each other.
ROWS = (
    ("_core", "gates", "checks", "reference"),
    ("formats", "gradients"),
    ("ops",),
    ("nn", "layers"),
    ("training",),
    ("graph",),
    ("streaming",),
    ("models",),
    ("loading",),
    ("recommend",),
    ("integrations",),
    ("demo", "tables"),
    ("convert", "runs"),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
# Rooms that may import less than what lies below them
ONLY = {"formats": {"gates"}}
# Rooms that only some may import: the reference is the specification, nothing computes with it
READERS = {"reference": {"demo"}, "face": {"demo", "cli", "integrations"}}
# Third-party modules, and the rooms whose functions may import them; at module level there is NumPy only
LAZY = {
    "pyfive": {"formats"},
    "h5py": {"formats"},
    "onnx": {"formats", "convert", "integrations"},
    "tqdm": {"models", "cli", "tables", "training", "recommend"},
    "keras": {"convert", "demo", "integrations"},
    "onnxruntime": {"convert"},
    "matplotlib": {"training"},
    "tf_keras": {"convert"},
    "tomli": {"runs"},
    "torch": {"convert", "demo", "integrations"},
}


def room_of(path: Path) -> str:
    return (
        "face"
        if path.name == "__init__.py" and path.parent == PACKAGE
        else path.relative_to(PACKAGE).parts[0].split(".")[0]
    )


SOURCES = sorted(p for p in PACKAGE.rglob("*.py"))


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import with whether it lies inside a function, or is for the type checker only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, inside
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from imports(node, inside or typing or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def targets(node: ast.Import | ast.ImportFrom, path: Path) -> list[str]:
    """Absolute dotted names that an import statement asks for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = ["fastgru", *path.relative_to(PACKAGE).parts[:-1]]
        package = package[: len(package) - node.level + 1]
        base = ".".join([*package, *([base] if base else [])])
    return [f"{base}.{alias.name}" for alias in node.names] if base == "fastgru" else [base]


def target_room(name: str) -> str:
    """fastgru.ops.gru -> ops; fastgru and fastgru.__version__ -> the public face."""
    part = [*name.split("."), ""][1]
    return part if (PACKAGE / part).is_dir() and part or (PACKAGE / f"{part}.py").is_file() else "face"


def arrow_is_wrong(room: str, target: str) -> str:
    """Why `room` may not import `target`; empty if it may."""
    if room == target or room == "face":
        return ""
    if room not in RANK:
        return f"the room {room} is not in the table: place it here and in docs/architecture.md"
    if target in READERS:
        return "" if room in READERS[target] else f"only {', '.join(sorted(READERS[target]))} may import {target}"
    if room in ONLY and target not in ONLY[room]:
        return f"{room} may import {', '.join(sorted(ONLY[room]))} only"
    if target not in RANK or RANK[target] >= RANK[room]:
        return f"{target} lies not below {room}"
    return ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    for node, inside in imports(ast.parse(path.read_text(encoding="utf-8"))):
        for name in targets(node, path):
            top, where = name.split(".")[0], f"{path.name}:{node.lineno}: import of {name}"
            if top == "fastgru":
                assert not (why := arrow_is_wrong(room, target_room(name))), f"{where}: {why}"
            elif top != "numpy" and top not in sys.stdlib_module_names:
                assert inside, f"{where}: a third-party module but NumPy is imported inside the function that needs it"
                assert room in LAZY.get(top, ()), f"{where}: not expected in {room}"


def test_core_imports_only_itself() -> None:
    """The .pyx and .pxd files, where these lie beside the package."""
    for path in (PACKAGE / "_core").glob("*.p[yx][xd]"):
        for line in path.read_text(encoding="utf-8").splitlines():
            match = re.match(r"\s*(?:from|import|cimport)\s+(fastgru[.\w]*)", line)
            assert not match or match[1].startswith("fastgru._core"), f"{path.name}: {line.strip()}"


@pytest.mark.parametrize(
    ("room", "target"),
    [("ops", "nn"), ("formats", "ops"), ("models", "cli"), ("nn", "layers"), ("ops", "reference"), ("layers", "face")],
)
def test_the_checker_bites(room: str, target: str) -> None:
    assert arrow_is_wrong(room, target)


def test_every_room_is_in_the_page() -> None:
    page = PACKAGE.parent / "docs" / "architecture.md"
    if not page.is_file():
        pytest.skip("docs/ does not lie beside the package here")
    text = page.read_text(encoding="utf-8")
    missing = sorted(
        {room_of(p) for p in SOURCES} - {"face"} - set(re.findall(r"`(?:fastgru/)?(\w+)(?:\.py|/)?`", text))
    )
    assert missing == []
