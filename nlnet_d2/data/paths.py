"""Joining a folder of ours with a name from somebody's file."""

import posixpath
import re


def safe_join(root: str, name: str) -> str:
    """``root/name`` for a name from an annotation file, refused if it could lead out of ``root``.

    Purely lexical, so that a data folder made of symbolic links keeps working.

    Raises:
        ValueError: an empty root, or a name that is empty, absolute, a URL, has a drive letter, a NUL or a
            backslash, or that climbs out of the root by ``..``.
    """
    if not root:
        raise ValueError("the folder is empty: name one, '.' for the current folder")
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected a relative file name, got {name!r}")
    if "\0" in name or "\\" in name or name.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
        raise ValueError(f"expected a relative path with forward slashes, got {name!r}")
    if posixpath.normpath(name).split("/")[0] in ("..", "."):
        raise ValueError(f"expected a file inside the folder, got {name!r}")
    return posixpath.join(root, name)
