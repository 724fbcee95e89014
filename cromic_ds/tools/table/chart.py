"""The chart of the table: one panel for each task's leading score, with and without comments side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cromic_ds.tasks import TASKS
from cromic_ds.tools.figures import BLUE, GRID, INK, MUTED, png_figure, remove_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

START_COLORS = {"pretrained": BLUE, "scratch": "#b4c6dc"}
START_LABELS = {"pretrained": "pretrained on comments", "scratch": "from scratch"}
BAR_WIDTH = 0.36


def draw_table(result: dict, path: Path) -> None:
    """Write the result of `report.summarize_table` as a PNG: bars are means, whiskers a standard deviation, dots the seeds."""
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    marks = dict.fromkeys(result["interpreted"], "*")
    labels = {row["model"]: row["label"] + marks.get(row["model"], "") for row in result["rows"]}
    columns = min(3, len(result["tasks"]))
    lines = -(-len(result["tasks"]) // columns)
    width, height = 1 + 1.3 * columns * max(2, len(models)) * 0.75, 0.7 + 2.7 * lines
    with png_figure(path, width, height, font_size=9) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, task in zip(panels, result["tasks"]):
            score, name = ("accuracy", "accuracy") if task == "vqa2" else ("cider", "CIDEr")
            _draw_panel(axes, result["rows"], task, score, models)
            axes.set_title(f"{TASKS[task].title}, {name} × 100", loc="left", fontsize=10, fontweight="bold")
            axes.set_xticks(range(len(models)), [labels[model].replace(" ", "\n") for model in models])
        for axes in panels[len(result["tasks"]) :]:
            axes.set_axis_off()
        _legend(figure, result)


def _draw_panel(axes: Axes, rows: list[dict], task: str, score: str, models: list[str]) -> None:
    starts = list(dict.fromkeys(row["start"] for row in reversed(rows)))  # from scratch on the left
    for row in rows:
        found = row["cells"][task]["scores"].get(score)
        place = models.index(row["model"]) + BAR_WIDTH * (starts.index(row["start"]) - (len(starts) - 1) / 2)
        if found is None:
            axes.annotate("–", (place, 0), (0, 3), textcoords="offset points", ha="center", color=MUTED)
            continue
        mean, spread = 100 * found["mean"], 100 * (found["std"] or 0)
        axes.bar(place, mean, 0.92 * BAR_WIDTH, color=START_COLORS[row["start"]])
        values = [100 * value for value in found["seeds"].values()]
        if len(values) > 1:
            axes.errorbar(place, mean, spread, color=INK, linewidth=1, capsize=2.5, zorder=3)
            axes.plot([place] * len(values), values, "o", color=INK, markersize=2.2, zorder=4)
        highest = max(mean + spread, *values) if values else mean
        axes.annotate(f"{mean:.0f}", (place, highest), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    remove_frame(axes)
    axes.tick_params(labelcolor=INK)
    axes.grid(axis="y", color=GRID)
    axes.set_xlim(-0.6, len(models) - 0.4)
    axes.set_ylim(0, max(1, axes.get_ylim()[1]) * 1.05)


def _legend(figure: Figure, result: dict) -> None:
    from matplotlib.patches import Patch

    starts = list(dict.fromkeys(row["start"] for row in reversed(result["rows"])))
    handles = [Patch(color=START_COLORS[start], label=START_LABELS[start]) for start in starts]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    notes = [f"mean, standard deviation and seeds ({len(result['seeds'])})" if len(result["seeds"]) > 1 else "one seed"]
    notes += ["sample world"] if result["data"]["source"] == "sample" else []
    notes += ["* our interpretation"] if result["interpreted"] else []
    figure.supxlabel("; ".join(notes), x=0.01, ha="left", fontsize=8, color=MUTED)
