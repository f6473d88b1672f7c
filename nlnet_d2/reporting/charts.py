"""Charts of the page, as SVG that is part of it."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from nlnet_d2.reporting.results import Curve
from nlnet_d2.reporting.run_folder import RunFolder

STYLE = {"svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "svg.hashsalt": "nlnet_d2"}
SIZE = (5.6, 3.3)  # inches; the page scales it to a column, or to a phone
NAMED = 12  # curves that a legend has room for


def loss_chart(run: RunFolder) -> Markup | None:
    """All losses over the iterations; None if none was written."""
    names = sorted({name for row in run.metrics for name in row if "loss" in name})
    names = sorted(names, key=lambda name: name != "total_loss")
    if not names:
        return None
    figure, axes = _figure("iteration", "loss")
    for name in names:
        iterations, values = run.series(name)
        axes.plot(iterations, values, label=name, linewidth=2 if name == "total_loss" else 1)
    axes.legend(fontsize=8, ncols=2)
    axes.set_ylim(bottom=0)
    return _svg(figure, "Losses over the iterations")


def rate_chart(run: RunFolder) -> Markup | None:
    """The learning rate over the iterations; None if it was not written."""
    iterations, values = run.series("lr")
    if not iterations:
        return None
    figure, axes = _figure("iteration", "learning rate")
    axes.plot(iterations, values)
    axes.set_ylim(bottom=0)
    return _svg(figure, "Learning rate over the iterations")


def metric_chart(run: RunFolder) -> Markup | None:
    """Each main metric of the evaluations; None with fewer than two evaluations."""
    names = sorted({n for row in run.metrics for n in row if n.rpartition("/")[2] in ("AP", "mAP")})
    series = {name: run.series(name) for name in names}
    if not any(len(values) > 1 for _, values in series.values()):
        return None
    figure, axes = _figure("iteration", "per cent")
    for name, (iterations, values) in series.items():
        axes.plot(iterations, values, marker="o", label=name)
    axes.legend()
    return _svg(figure, "Average precision over the iterations")


def curve_chart(title: str, curves: Sequence[Curve]) -> Markup:
    """Precision over recall."""
    figure, axes = _figure("recall", "precision")
    for curve in curves:
        many = len(curves) > NAMED
        axes.plot(
            curve.recall, curve.precision, label=None if many else curve.label, alpha=0.5 if many else 1
        )
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    if len(curves) <= NAMED:
        axes.legend(fontsize=8)
    return _svg(figure, f"Precision and recall. {title}")


def confusion_chart(matrix: np.ndarray, classes: Sequence[str]) -> Markup:
    """Shares of the rows of a confusion matrix (K + 1, K + 1), see ``matching.confusion``."""
    names = [*classes, "nothing"]
    side = max(3.6, min(0.32 * len(names) + 1.5, 14))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="found", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
    small = 8 if len(names) <= 20 else 5
    axes.set_xticklabels(names, rotation=90, fontsize=small)
    axes.set_yticklabels(names, fontsize=small)
    if len(names) <= NAMED:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, label="share of the row")
    return _svg(figure, "Confusion between classes")


def _figure(x: str, y: str):
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an SVG element, named for those who cannot see it."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Title": title, "Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return Markup(svg)  # noqa: S704  matplotlib escapes the texts that it writes
