"""The house rules that a program can see: import order, size of files and functions, honest assertions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "nlnet_d2").rglob("*.py"))
COMMAND = sorted((ROOT / "nlnet_d2_command").glob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py")) + sorted((ROOT / "projects").rglob("*.py"))
SOURCES = PACKAGE + COMMAND + TOOLS
TESTS = sorted((ROOT / "tests").rglob("*.py"))

ABOVE_MODEL = {"layers", "blocks", "backbones", "modeling"}
# layers <- blocks <- backbones <- modeling <- {solver, engine, analysis} <- inference; data, evaluation and
# checkpoint import no model code; config, a list of keys, imports nothing.
MAY_IMPORT = {
    "layers": {"layers"},
    "blocks": {"layers", "blocks"},
    "backbones": {"layers", "blocks", "backbones"},
    "modeling": ABOVE_MODEL | {"config"},
    "config": {"config"},
    "solver": ABOVE_MODEL | {"config", "solver"},
    "data": {"data"},
    "evaluation": {"data", "evaluation"},
    "checkpoint": {"data", "checkpoint"},
    "analysis": ABOVE_MODEL | {"config", "data", "evaluation", "checkpoint", "analysis"},
    "engine": ABOVE_MODEL | {"config", "solver", "data", "evaluation", "checkpoint", "analysis", "engine"},
}
MAY_IMPORT["inference"] = MAY_IMPORT["engine"] | {"inference"}
MAY_IMPORT["reporting"] = MAY_IMPORT["inference"] | {"reporting"}
MAY_IMPORT["benchmarks"] = MAY_IMPORT["inference"] | {"benchmarks"}
MAY_IMPORT["cli"] = MAY_IMPORT["reporting"] | {"benchmarks", "cli"}


def imported_modules(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def functions(path: Path):
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_order(path):
    parts = path.relative_to(ROOT / "nlnet_d2").parts
    modules = imported_modules(path)
    assert not {m for m in modules if m.split(".")[0] in ("tools", "projects", "tests")}
    if len(parts) == 1:  # nlnet_d2/__init__.py and its like tie the folders together
        return
    folders = {m.split(".")[1] for m in modules if m.startswith("nlnet_d2.")}
    folders &= set(MAY_IMPORT)
    assert folders <= MAY_IMPORT[parts[0]], f"{parts[0]} may not import {folders - MAY_IMPORT[parts[0]]}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path):
    assert len(path.read_text().splitlines()) <= 500, "split the file along its nouns"
    for function in functions(path):
        length = function.end_lineno - function.lineno + 1
        assert length <= 60, f"{function.name}, line {function.lineno}, has {length} lines"


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_comparisons_are_asserted(path):
    """A bare ``torch.allclose(a, b)`` as a statement can never fail."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = getattr(node.value.func, "attr", "")
            assert called not in ("allclose", "isclose", "array_equal", "equal"), f"line {node.lineno}"
