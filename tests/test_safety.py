"""No source of ours reads a file in a way that could run what is in it."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("nlnet_d2", "nlnet_d2_command", "tools", "projects")
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
YAML_FILES = [p for folder in ("configs", "projects", "tests/data") for p in (ROOT / folder).rglob("*.yaml")]
# Called so, a function is safe; without these keywords it is not.
NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "merge_from_file": ("allow_unsafe", False),
    "load_yaml_with_base": ("allow_unsafe", False),
}
FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "LazyConfig.load",
    "instantiate",
    "eval",
    "exec",
    "os.system",
}


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            yield ast.unparse(node.func), keywords, node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_reads_are_safe(path):
    for name, keywords, line in calls(path):
        assert name not in FORBIDDEN, f"line {line}"
        for needed, (keyword, value) in NEEDED.items():
            if name == needed or name.endswith(f".{needed}"):
                assert keywords.get(keyword) is value, f"line {line}: {keyword}={value} is missing"


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_configs_are_plain_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)
