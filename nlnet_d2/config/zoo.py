"""The recipes: those of the checkout, or the copies of them in an installed wheel."""

import difflib
from fnmatch import fnmatchcase
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# setup.py puts the folder ``configs`` of the checkout into the wheel as ``nlnet_d2/configs``.
CONFIGS = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())


def config_files(folder: Path = CONFIGS) -> list[Path]:
    """All recipes under a folder: the YAML files but those called ``Base-*``, from which others inherit."""
    return sorted(path for path in folder.rglob("*.yaml") if not path.name.startswith("Base-"))


def list_configs(pattern: str = "*") -> list[str]:
    """Names of the recipes, such as ``coco/mask_rcnn_nl_R50_FPN.yaml``, that contain a match of a glob."""
    names = [path.relative_to(CONFIGS).as_posix() for path in config_files()]
    return [name for name in names if fnmatchcase(name.lower(), f"*{pattern.lower()}*")]


def find_config(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: a path; if there is no such file, ``coco/mask_rcnn_nl_R50_FPN.yaml``, as ``list_configs`` gives
            it, or its last part, with or without ``.yaml``.

    Raises:
        FileNotFoundError: there is no such recipe; with the names nearest to it.
    """
    if Path(name).is_file():
        return Path(name)
    known = list_configs()
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    found = [path for path in known if wanted in (path.removesuffix(".yaml"), Path(path).stem)]
    if len(found) == 1:
        return CONFIGS / found[0]
    inside = [str(path) for path in sorted(Path(name).glob("*.yaml"))]  # of a folder
    hint = " or ".join(found or inside[:3] or _nearest(Path(wanted).stem, known))
    hint = f"did you mean {hint}?" if hint else "`nlnet-d2 models` lists the recipes"
    raise FileNotFoundError(f"No such file or recipe; {hint}")


def _nearest(stem: str, known: list[str]) -> list[str]:
    by_stem = {Path(path).stem.lower(): path for path in known}
    return [by_stem[close] for close in difflib.get_close_matches(stem.lower(), by_stem, n=3)]


def table_rows() -> dict[str, dict[str, str]]:
    """The rows of ``configs/README.md`` by recipe: its columns, with the name under ``config``.

    A recipe that was added since it was written has no other column.
    """
    rows, columns = {name: {"config": name} for name in list_configs()}, []
    for line in (CONFIGS / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| config "):
            columns = cells
        elif line.startswith("| ["):
            name = cells[0].partition("](")[2].removesuffix(")")
            rows[name] = dict(zip(columns, cells, strict=True)) | {"config": name}
    return rows
