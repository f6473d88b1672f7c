"""The recipes that come with nlnet_d2: name, size, cost, and the AP that was published or measured.

nlnet-d2 models
nlnet-d2 models '*mvit*'
nlnet-d2 models mask_rcnn_nl_R50_FPN

Every name can be given to --config-file. One that fits a single recipe shows all that is known of it.
"""

import argparse
from collections.abc import Sequence

from tabulate import tabulate

from nlnet_d2.config.zoo import find_config, list_configs, table_rows
from nlnet_d2.engine.errors import ConfigError, exit_code

LISTED = ("config", "params (M)", "GFLOPs", "published", "measured")
WIDTH = 44  # characters of a published or measured result in the list


def show(pattern: str) -> None:
    """Print the recipes that a name or glob fits.

    Raises:
        ConfigError: there are none.
    """
    names, rows = list_configs(pattern), table_rows()
    exact = [name for name in names if pattern in (name, name.removesuffix(".yaml"), _stem(name))]
    if len(names) == 1 or exact:
        _show_one(exact[0] if exact else names[0], rows)
    elif names:
        print(tabulate([_listed(rows[name]) for name in names], headers=LISTED, disable_numparse=[0]))
        print(f"{len(names)} recipes. AP in percent, as published by others or measured here")
    else:
        try:
            find_config(pattern)
        except FileNotFoundError as error:
            raise ConfigError(f"{pattern}: {error}") from error


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".yaml")


def _show_one(name: str, rows: dict) -> None:
    print(
        tabulate(
            [(key, value or "-") for key, value in rows[name].items()],
            tablefmt="plain",
            disable_numparse=True,
        )
    )
    print(f"\n{find_config(name)}:\n\n{find_config(name).read_text()}", end="")


def _listed(row: dict) -> list[str]:
    cells = [row.get(column, "") for column in LISTED]
    return [
        cell if len(cell) <= WIDTH or i == 0 else cell[: WIDTH - 3] + "..." for i, cell in enumerate(cells)
    ]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a name, a part of one, or a glob")
    return exit_code(show, parser.parse_args(argv).pattern)
