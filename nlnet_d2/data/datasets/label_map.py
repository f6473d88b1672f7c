"""Label maps: the text files (.pbtxt) that give AVA's classes their ids and names.

Both styles of braces that AVA published are read, on one line or many:
``item { name: "run" id: 10 }`` and ``label { name: "run" label_id: 10 label_type: PERSON_MOVEMENT }``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nlnet_d2.data.errors import DataError, Finding


@dataclass(frozen=True)
class LabelMap:
    """Classes by id, in the order of the ids; ``groups`` has the ``label_type`` where the file gives one."""

    names: dict[int, str]
    groups: dict[int, str]


_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_BLOCK = re.compile(r'(?:item|label)\s*:?\s*\{((?:[^{}"]|"[^"\n]*")*)\}')
_FIELD = re.compile(r'(\w+)\s*:\s*(?:"([^"\n]*)"|([^\s"{}]+))')


def read_label_map(path: str | Path) -> LabelMap:
    """Read a label map.

    Raises:
        DataError: naming file and line: there is no such file, text that is no block, a block without name or
            id, an id below 1 or used twice, a file without blocks.
    """
    try:
        text = _COMMENT.sub("", Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a label map, got {error}; correct the path") from error
    names, groups = {}, {}
    for line, fields in _blocks(text, str(path)):
        id_ = fields.get("id", fields.get("label_id", ""))
        if not id_.isdecimal() or int(id_) < 1 or not fields.get("name"):
            raise _error(path, line, 'name: "..." and an id from 1', fields)
        if int(id_) in names:
            raise _error(path, line, "a new id", f"{id_}, which is already {names[int(id_)]!r}")
        names[int(id_)] = fields["name"]
        if "label_type" in fields:
            groups[int(id_)] = fields["label_type"]
    if not names:
        raise _error(path, 1, 'blocks such as item { name: "run" id: 1 }', "none")
    return LabelMap(dict(sorted(names.items())), dict(sorted(groups.items())))


def write_label_map(path: str | Path, label_map: LabelMap) -> None:
    """Write blocks in the style of AVA v2.1, with their ``label_type`` where there is one."""
    with open(path, "w", encoding="utf-8") as file:
        for id_, name in label_map.names.items():
            group = f"  label_type: {label_map.groups[id_]}\n" if id_ in label_map.groups else ""
            file.write(f'item {{\n  name: "{name}"\n  id: {id_}\n{group}}}\n')


def _blocks(text: str, source: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, fields) of every block; nothing but space may be left between and inside them."""
    end = 0
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        _expect_space(text[end : block.start()], source, text.count("\n", 0, end) + 1)
        _expect_space(_FIELD.sub("", block.group(1)), source, line)
        yield line, {key: quoted or bare for key, quoted, bare in _FIELD.findall(block.group(1))}
        end = block.end()
    _expect_space(text[end:], source, text.count("\n", 0, end) + 1)


def _expect_space(rest: str, source: str, line: int) -> None:
    word = rest.lstrip()
    if word:
        line += rest.count("\n", 0, len(rest) - len(word))
        raise _error(source, line, "a block of a label map", word.rstrip())


def _error(path: str | Path, line: int, expected: str, got: object) -> DataError:
    return DataError(str(Finding(f"{path}:{line}", "", "", expected, got, "correct the label map")))
