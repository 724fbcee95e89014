"""The chart of a report: PassRate with its interval beside the quality scores, one line for each writer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cromic_ds.tools.contact_sheet import find_font
from cromic_ds.tools.figures import BLUE, GRID, MUTED, OCHRE, png_figure, remove_frame
from cromic_ds.tools.rating.sheet import HUMAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUALITY_COLORS = {"0 wrong": "#dde3ea", "1 partly right": "#92b3db", "2 right": BLUE}  # a better quality is darker


def draw_rating(result: dict[str, Any], path: Path) -> None:
    """Write the result of `summarize_rating` as a PNG, without the writers that nobody has judged yet."""
    writers = {writer: about for writer, about in result["writers"].items() if about["judgments"]}
    with png_figure(path, 9, 1.9 + 0.55 * len(writers), font_size=10) as figure:
        rates, qualities = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _draw_rates(rates, writers)
        _draw_qualities(qualities, writers)
        figure.suptitle(_subtitle(result), x=0.01, ha="left", fontsize=9, color=MUTED)


def _font_families() -> list[str]:
    """Return the fonts for names of systems. Chinese characters are drawn as boxes if no installed font has them."""
    from matplotlib import font_manager

    chinese = find_font()
    if chinese is None:
        return ["DejaVu Sans"]
    # Registered under its own name with normal weight, because matplotlib would warn if only a bold font were found.
    name = "Chinese of cromic_ds"
    font_manager.fontManager.ttflist.append(font_manager.FontEntry(fname=str(chinese), name=name, weight=400))
    return ["DejaVu Sans", name]


def _draw_rates(axes: Axes, writers: dict[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import PercentFormatter

    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for line, (writer, about) in enumerate(writers.items()):
        color, rate = OCHRE if writer == HUMAN else BLUE, about["pass_rate"]
        axes.plot(about["interval"], [line, line], color=color, linewidth=2.5, alpha=0.45, solid_capstyle="round")
        axes.plot(rate, line, "o", color=color, markersize=8)
        axes.annotate(f"{rate:.1%}", (rate, line), (0, 9), textcoords="offset points", ha="center", bbox=box)
    if HUMAN in writers:
        axes.axvline(writers[HUMAN]["pass_rate"], color=OCHRE, linewidth=1, linestyle=":")
    axes.set_title("PassRate, with its 95% interval", loc="left", fontsize=11, fontweight="bold")
    axes.set_yticks(range(len(writers)), list(writers), fontfamily=_font_families())
    axes.set_ylim(len(writers) - 0.4, -0.7)  # the first on top
    axes.set_xlim(-0.02, 1.04)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", color=GRID)
    remove_frame(axes)


def _draw_qualities(axes: Axes, writers: dict[str, dict[str, Any]]) -> None:
    for line, about in enumerate(writers.values()):
        left = 0.0
        for count, (name, color) in zip(about["quality_counts"], QUALITY_COLORS.items()):
            share = count / about["judgments"]
            axes.barh(line, share, 0.5, left, color=color, label=name if line == 0 else None)
            left += share
        axes.annotate(f"{about['quality']:.2f}", (1, line), (6, 0), textcoords="offset points", va="center")
    axes.set_title("Quality, and its mean", loc="left", fontsize=11, fontweight="bold")
    axes.set_xlim(0, 1.12)
    axes.set_xticks([])
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, 0), ncols=3, frameon=False, fontsize=8, handlelength=1, columnspacing=1
    )
    remove_frame(axes)


def _subtitle(result: dict[str, Any]) -> str:
    counts, raters = result["counts"], len(result["raters"])
    judged = f"{counts['judgments']:,} judgments by {raters} {'rater' if raters == 1 else 'raters'}"
    kappas = [pair["passed"]["kappa"] for pair in result["agreement"] if pair["passed"]["kappa"] is not None]
    if not kappas:
        return judged
    if len(kappas) == 1:
        return f"{judged}, Cohen's κ = {kappas[0]:.2f}"
    return f"{judged}, Cohen's κ from {min(kappas):.2f} to {max(kappas):.2f} ({len(kappas)} pairs)"
