"""One self-contained HTML page about a run: ``report(output_dir)``.

Text and tables need no JavaScript; with it, tables can be sorted and filtered, and the gallery too.
"""

import logging
from pathlib import Path

from jinja2 import Environment, PackageLoader

from nlnet_d2 import __version__
from nlnet_d2.reporting.attention_section import attention_section
from nlnet_d2.reporting.results import SetResults
from nlnet_d2.reporting.run_folder import RunFolder, read_run
from nlnet_d2.reporting.sections import (
    Section,
    compare_all,
    data_section,
    origin_section,
    read_results,
    result_section,
    training_section,
)

logger = logging.getLogger(__name__)

PAGE = "report.html"


def report(output_dir: str | Path, page: str | Path | None = None, attention: int = 2) -> Path:
    """Write the page about an OUTPUT_DIR; returns its path.

    What is not there, such as the data on another machine, is named on the page in its place.

    Args:
        page: the file to write; ``report.html`` in the folder unless given.
        attention: in how many images or clips attention is drawn, where the model has it.

    Raises:
        DataError: the folder is no OUTPUT_DIR, or a file in it is malformed.
    """
    run = read_run(output_dir)
    page = Path(page) if page else run.path / PAGE
    results, notes = read_results(run)
    compared = [compare_all(of_set) for of_set in results]
    sections = [result_section(of_set, pairs) for of_set, pairs in zip(results, compared, strict=True)]
    if notes or not results:
        sections.insert(0, Section("Results", notes=notes or ["The run has evaluated nothing."]))
    sections += [
        attention_section(run, compared, attention),
        training_section(run),
        data_section(run),
        origin_section(run),
    ]
    environment = Environment(loader=PackageLoader("nlnet_d2.reporting"), autoescape=True, trim_blocks=True)
    text = environment.get_template("report.html").render(
        name=run.path.resolve().name,
        numbers=_headline(run, results),
        sections=sections,
        version=__version__,
    )
    page.write_text(text, encoding="utf-8")
    return page


def _headline(run: RunFolder, results: list[SetResults]) -> list[tuple[str, str]]:
    """What and how much, for the head of the page."""
    numbers = []
    for of_set in results:
        numbers += [
            (f"{table.title.partition(':')[0]}, {of_set.name}", f"{row[0]} {table.show(row[1])}")
            for table in of_set.tables
            if table.header[0] == "metric"
            for row in table.rows[:1]
        ]
    if run.metrics:
        numbers.append(("Iterations", str(run.iterations_done(run.metrics[-1]))))
    return numbers
