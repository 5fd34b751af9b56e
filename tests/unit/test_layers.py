"""The order of layers: imports go down only, and the command line starts without the heavy libraries."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "onpol_cli"
LAYERS = [
    {"core"},
    {"sandbox", "runs"},
    {"tasks", "learner"},
    {"methods", "rollout"},
    {"comparison", "evaluation", "training"},
    {"stages"},
    {"cli", "process", "completion"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "vllm", "transformers"}
SCHEMA = PACKAGE / "core" / "config.py"
"""The one module that may be longer: every setting is in one place."""
MODULES = sorted(PACKAGE.rglob("*.py"))
OWN_PROCESS = PACKAGE / "sandbox" / "inside"
"""Code of the sandboxed processes: it has no package around it and talks through its own channels."""


def name_of(file: Path) -> str:
    """`onpol_cli/learner/model.py` -> `learner`; `onpol_cli/cli.py` -> `cli`."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module name with its line, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_only(file: Path) -> None:
    own = name_of(file)
    if own == "__init__":
        return
    for module, line in imports(ast.parse(file.read_text(encoding="utf-8"))):
        parts = module.split(".")
        if parts[0] != "onpol_cli" or len(parts) < 2 or parts[1] not in RANK or parts[1] == own:
            continue
        below = RANK[parts[1]] < RANK[own] or (own in LAYERS[-1] and parts[1] in LAYERS[-1])
        assert below, f"{file.relative_to(PACKAGE)}, line {line}: {own} must not import {parts[1]}"


def test_every_package_has_its_place() -> None:
    packages = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    assert packages <= set(RANK)


@pytest.mark.parametrize("name", ["cli", "process", "completion"])
def test_the_command_line_imports_stages_inside_commands_only(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {module for node in top for module, _ in imports(node)}
    assert not [module for module in found if module.split(".")[0] in HEAVY or module.startswith("onpol_cli.stages")]


@pytest.mark.parametrize(
    "module", ["onpol_cli.cli", "onpol_cli.comparison.compare", "onpol_cli.stages.compare", "onpol_cli.stages.runs"]
)
def test_a_light_module_does_not_load_a_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_says_what_it_owns_and_stays_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert len(text.splitlines()) <= 400 or file == SCHEMA, "too long: split it"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{node.name} is too long"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_printing_is_the_consoles_and_nothing_is_left_undone(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if OWN_PROCESS not in file.parents and file.name != "console.py":
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not re.search(r"\b(TODO|FIXME|NotImplementedError)\b", text)
