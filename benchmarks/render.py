"""One renderer for all benchmarks: Markdown pages of sentences and tables, and plots."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """A Markdown table whose cells are computed.

    Attributes:
        columns, rows: headings and labels by key; write two labels in one row as "one | other".
        cell: (row key, column key) -> text. Comparisons with other rows (a gain, its significance) are computed here
            too, from the results of both.
        corner: heading of the label column.
        right: align numbers to the right.
    """

    columns: Mapping[Any, str]
    rows: Mapping[Any, str]
    cell: Callable[[Any, Any], str]
    corner: str = ""
    right: bool = True

    def __str__(self) -> str:
        head = " | ".join([self.corner, *self.columns.values()])
        rule = "|---" * (self.corner.count("|") + 1) + ("|---:" if self.right else "|---") * len(self.columns)
        body = [" | ".join([label, *(self.cell(row, key) for key in self.columns)]) for row, label in self.rows.items()]
        return "\n".join([f"| {head} |".replace("|  |", "| |"), f"{rule}|", *(f"| {line} |" for line in body)])


@dataclass(frozen=True)
class Series:
    """Points of a plot: a line, or bars at x = 0, 1, ...; `style` holds keyword arguments of matplotlib."""

    points: Sequence[tuple[float, float]]
    label: str | None = None
    style: Mapping[str, Any] = field(default_factory=dict)
    bars: bool = False
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """Axes of a plot: `axes` holds keyword arguments of `Axes.set`, `ticks` labels by x, `level` a dashed line."""

    series: Sequence[Series]
    axes: Mapping[str, Any]
    ticks: Mapping[float, str] = field(default_factory=dict)
    level: tuple[float, str] | None = None
    legend: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plot:
    """Panels side by side; `size` is the size of the whole plot in inches."""

    panels: Sequence[Panel]
    size: tuple[float, float]


Block = str | Table | list[str] | None  # a paragraph or heading, a table, the items of a list, or nothing


def page(blocks: Iterable[Block]) -> str:
    """The Markdown of a page, without empty blocks."""
    return "\n\n".join(_markdown(block) for block in blocks if block) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, list):
        return "\n".join(f"- {item}" for item in block)
    if isinstance(block, Table) or block.startswith("#"):
        return str(block)
    return textwrap.fill(block, 120, break_on_hyphens=False, break_long_words=False)


def draw(plot: Plot, path: Path) -> None:
    """Draw a plot into a file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, len(plot.panels), figsize=plot.size, layout="constrained", squeeze=False)
    for axes, panel in zip(grid[0], plot.panels, strict=True):
        bars = [series for series in panel.series if series.bars]
        for series in panel.series:
            _draw_series(axes, series, bars)
        if panel.level:
            axes.axhline(panel.level[0], color="grey", linestyle="--", label=panel.level[1])
        axes.set(**panel.axes)
        if panel.ticks:
            axes.set_xticks(list(panel.ticks), list(panel.ticks.values()))
            axes.minorticks_off()
        if not bars:
            axes.grid(alpha=0.3)
        if any(series.label for series in panel.series):
            axes.legend(frameon=False, fontsize=8, **panel.legend)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_series(axes: Any, series: Series, bars: Sequence[Series]) -> None:
    x, y = zip(*series.points, strict=True)
    if series.bars:
        width = 0.85 / len(bars)
        shift = (bars.index(series) - len(bars) / 2 + 0.5) * width
        drawn = axes.bar([place + shift for place in x], y, width, label=series.label, **series.style)
        axes.bar_label(drawn, fmt="%.1f", fontsize=7, padding=3)  # clear of a dot on the bar
    else:
        axes.plot(x, y, label=series.label, **series.style)
    place = {"textcoords": "offset points", "xytext": (2, -5), "ha": "left", "va": "top"}
    for text, point in zip(series.texts, series.points, strict=False):
        axes.annotate(text, point, fontsize=6, rotation=-40, **place)
