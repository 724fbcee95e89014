"""The picture of the table: a panel for each task's leading score, with and without comments side by side."""

from __future__ import annotations

import os
from pathlib import Path

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
COLORS = {"pretrained": "#2b6cb0", "scratch": "#b4c6dc"}
NAMES = {"pretrained": "pretrained on comments", "scratch": "from scratch"}
LEADING = {"vqa2": ("accuracy", "accuracy")}
BAR = 0.36


def draw(result: dict, path: Path) -> None:
    """Write the PNG of `report.summarize`'s result: bars are means, whiskers a standard deviation, dots the seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    from cromic_ds.tools.table.columns import TASK_NAMES

    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    labels = {
        row["model"]: row["label"] + ("*" if row["model"] in result["interpreted"] else "") for row in result["rows"]
    }
    with matplotlib.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": MUTED}):
        columns = min(3, len(result["tasks"]))
        lines = -(-len(result["tasks"]) // columns)
        figure = Figure(
            figsize=(1 + 1.3 * columns * max(2, len(models)) * 0.75, 0.7 + 2.7 * lines), dpi=150, layout="constrained"
        )
        panels = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, task in zip(panels, result["tasks"]):
            score, name = LEADING.get(task, ("cider", "CIDEr"))
            _draw_panel(axes, result["rows"], task, score, models)
            axes.set_title(f"{TASK_NAMES[task]}, {name} × 100", loc="left", fontsize=10, fontweight="bold")
            axes.set_xticks(range(len(models)), [labels[model].replace(" ", "\n") for model in models])
        for axes in panels[len(result["tasks"]) :]:
            axes.set_axis_off()
        _legend(figure, result)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        figure.savefig(aside, format="png")
    aside.replace(path)


def _draw_panel(axes, rows: list[dict], task: str, score: str, models: list[str]) -> None:
    starts = list(dict.fromkeys(row["start"] for row in reversed(rows)))  # from scratch on the left
    for row in rows:
        of = row["cells"][task]["scores"].get(score)
        place = models.index(row["model"]) + BAR * (starts.index(row["start"]) - (len(starts) - 1) / 2)
        if of is None:
            axes.annotate("–", (place, 0), (0, 3), textcoords="offset points", ha="center", color=MUTED)
            continue
        mean, spread = 100 * of["mean"], 100 * (of["std"] or 0)
        axes.bar(place, mean, 0.92 * BAR, color=COLORS[row["start"]])
        values = [100 * value for value in of["seeds"].values()]
        if len(values) > 1:
            axes.errorbar(place, mean, spread, color=INK, linewidth=1, capsize=2.5, zorder=3)
            axes.plot([place] * len(values), values, "o", color=INK, markersize=2.2, zorder=4)
        highest = max(mean + spread, *values) if values else mean
        axes.annotate(f"{mean:.0f}", (place, highest), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID)
    axes.set_xlim(-0.6, len(models) - 0.4)
    axes.set_ylim(0, max(1, axes.get_ylim()[1]) * 1.05)


def _legend(figure, result: dict) -> None:
    from matplotlib.patches import Patch

    starts = list(dict.fromkeys(row["start"] for row in reversed(result["rows"])))
    handles = [Patch(color=COLORS[start], label=NAMES[start]) for start in starts]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    notes = [f"mean, standard deviation and seeds ({len(result['seeds'])})" if len(result["seeds"]) > 1 else "one seed"]
    notes += ["sample world"] if result["data"]["source"] == "sample" else []
    notes += ["* our interpretation"] if result["interpreted"] else []
    figure.supxlabel("; ".join(notes), x=0.01, ha="left", fontsize=8, color=MUTED)
