"""Config files that somebody else wrote: YAML without code, on this machine."""

from typing import IO

from detectron2.config import CfgNode


class _LocalFiles(CfgNode):
    """Fvcore would download a ``_BASE_`` from any host."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        if "://" in filename:
            raise ValueError(f"{filename}: configs and their _BASE_ are files; download it, look at it")
        return open(filename, encoding="utf-8")


def merge_file(cfg: CfgNode, path: str) -> None:
    """``cfg.merge_from_file``, but safe: errors of ``read_yaml`` come before those of yacs."""
    read_yaml(path)
    cfg.merge_from_file(path, allow_unsafe=False)


def read_yaml(path: str) -> dict:
    """The content of a YAML file, on top of that of its ``_BASE_``.

    Raises:
        OSError: it cannot be read.
        ValueError: it or its base is an address, is no map, or leads back to itself.
        yaml.YAMLError: it is not YAML; ``yaml.constructor.ConstructorError`` for tags that would run Python.
    """
    try:
        content = _LocalFiles.load_yaml_with_base(path, allow_unsafe=False)
    except RecursionError as error:
        raise ValueError("its _BASE_ leads back to itself") from error
    except (TypeError, AttributeError) as error:
        raise ValueError("a config is a map of keys, its _BASE_ a file name") from error
    if not isinstance(content, dict):
        raise ValueError(f"a config is a map of keys, got {type(content).__name__}")
    return content
