"""What is installed: what an import costs and loads, what the distribution holds, stubs that match."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastgru

PACKAGE = Path(fastgru.__file__).parent
ROOT = Path(__file__).parent.parent


def run(code: str, **environment: str) -> str:
    """What a new interpreter prints."""
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_third_party_module_but_numpy() -> None:
    code = """
import json, sys
before = set(sys.modules)
import fastgru
after = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(after - set(sys.stdlib_module_names) - {"numpy", "fastgru"})))
"""
    foreign = {name for name in json.loads(run(code)) if not name.startswith(("__editable__", "_cython_", "cython_"))}
    assert foreign == set()


def test_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", fastgru.__version__)
    assert fastgru.build_info()["version"] == fastgru.__version__
    changes = ROOT / "CHANGELOG.md"
    if changes.exists():
        assert f"## {fastgru.__version__}" in changes.read_text(encoding="utf-8")
    try:
        assert importlib.metadata.version("fastgru") == fastgru.__version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fastgru is imported from a folder, not installed")


def test_build_info_says_what_runs() -> None:
    info = fastgru.build_info()
    assert set(info) == {"version", "isa", "isas", "openmp", "compiler"}
    assert info["isa"] in info["isas"] and "scalar" in info["isas"]
    assert isinstance(info["openmp"], bool) and info["compiler"]


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()
    for name in ("isa", "gru", "dense"):
        assert (PACKAGE / "_core" / f"{name}.pyi").is_file()


@pytest.mark.parametrize("name", sorted(p.stem for p in (PACKAGE / "_core").glob("*.pyi")))
def test_stub_names_exist(name: str) -> None:
    """Each function, class, method and constant that a stub declares is there."""
    module = importlib.import_module(f"fastgru._core.{name}")
    for node in ast.parse((PACKAGE / "_core" / f"{name}.pyi").read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert hasattr(module, node.name), node.name
        if isinstance(node, ast.AnnAssign):
            assert isinstance(node.target, ast.Name) and hasattr(module, node.target.id)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                declared = member.name if isinstance(member, ast.FunctionDef) else None
                if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    declared = member.target.id
                assert declared is None or hasattr(getattr(module, node.name), declared), declared


def test_distribution_holds_no_sources_of_the_core() -> None:
    """Where a wheel is installed: its RECORD names the package's own files (an editable install's does not)."""
    try:
        record = importlib.metadata.distribution("fastgru").read_text("RECORD") or ""
    except importlib.metadata.PackageNotFoundError:
        record = ""
    files = [line.split(",")[0] for line in record.splitlines()]
    if "fastgru/__init__.py" not in files:
        pytest.skip("fastgru is not installed from a wheel here")
    assert [name for name in files if name.endswith((".pyx", ".pxd", ".c", ".h", ".o"))] == []
