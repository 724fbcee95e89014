"""The picture of a report: PassRate with its interval beside the quality scores, a line for each writer."""

from __future__ import annotations

from pathlib import Path

from cromic_ds.tools.contact_sheet import find_font
from cromic_ds.tools.rating.sheet import HUMAN

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
SYSTEM_COLOR, HUMAN_COLOR = "#2b6cb0", "#b7791f"
QUALITY_COLORS = ("#dde3ea", "#92b3db", "#2b6cb0")  # of 0, 1 and 2: the better, the more ink
QUALITY_NAMES = ("0 wrong", "1 partly right", "2 right")

_CHINESE = "Chinese of cromic_ds"


def draw(result: dict, path: Path) -> None:
    """Write the PNG of `summarize`'s result; writers that nobody judged yet are left out."""
    import matplotlib
    from matplotlib.figure import Figure

    writers = {writer: of for writer, of in result["writers"].items() if of["judgments"]}
    with matplotlib.rc_context({"font.size": 10, "text.color": INK}):
        figure = Figure(figsize=(9, 1.9 + 0.55 * len(writers)), dpi=150, layout="constrained")
        rates, qualities = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _draw_rates(rates, writers)
        _draw_qualities(qualities, writers)
        figure.suptitle(_subtitle(result), x=0.01, ha="left", fontsize=9, color=MUTED)
        aside = path.with_name(f"{path.name}.tmp")
        figure.savefig(aside, format="png")
    aside.replace(path)


def _font_families() -> list[str]:
    """For names of systems in Chinese; where no installed font has the characters, they are drawn as boxes."""
    from matplotlib import font_manager

    chinese = find_font()
    if chinese is None:
        return ["DejaVu Sans"]
    # Under a name of its own and as of normal weight, whatever it is, or matplotlib would warn of a bold one.
    font_manager.fontManager.ttflist.append(font_manager.FontEntry(fname=str(chinese), name=_CHINESE, weight=400))
    return ["DejaVu Sans", _CHINESE]


def _draw_rates(axes, writers: dict[str, dict]) -> None:
    from matplotlib.ticker import PercentFormatter

    for line, (writer, of) in enumerate(writers.items()):
        color = HUMAN_COLOR if writer == HUMAN else SYSTEM_COLOR
        low, high = of["interval"]
        axes.plot([low, high], [line, line], color=color, linewidth=2.5, alpha=0.45, solid_capstyle="round")
        axes.plot(of["pass_rate"], line, "o", color=color, markersize=8)
        axes.annotate(
            f"{of['pass_rate']:.1%}",
            (of["pass_rate"], line),
            (0, 9),
            textcoords="offset points",
            ha="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    if HUMAN in writers:
        axes.axvline(writers[HUMAN]["pass_rate"], color=HUMAN_COLOR, linewidth=1, linestyle=":")
    axes.set_title("PassRate, with its 95% interval", loc="left", fontsize=11, fontweight="bold")
    axes.set_yticks(range(len(writers)), list(writers), fontfamily=_font_families())
    axes.set_ylim(len(writers) - 0.4, -0.7)  # the first on top
    axes.set_xlim(-0.02, 1.04)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", color=GRID)
    _plain(axes)


def _draw_qualities(axes, writers: dict[str, dict]) -> None:
    for line, of in enumerate(writers.values()):
        left = 0.0
        for count, color, name in zip(of["quality_counts"], QUALITY_COLORS, QUALITY_NAMES):
            share = count / of["judgments"]
            axes.barh(line, share, 0.5, left, color=color, label=name if line == 0 else None)
            left += share
        axes.annotate(f"{of['quality']:.2f}", (1, line), (6, 0), textcoords="offset points", va="center")
    axes.set_title("Quality, and its mean", loc="left", fontsize=11, fontweight="bold")
    axes.set_xlim(0, 1.12)
    axes.set_xticks([])
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, 0), ncols=3, frameon=False, fontsize=8, handlelength=1, columnspacing=1
    )
    _plain(axes)


def _plain(axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)


def _subtitle(result: dict) -> str:
    counts, raters = result["counts"], len(result["raters"])
    judged = f"{counts['judgments']:,} judgments by {raters} {'rater' if raters == 1 else 'raters'}"
    kappas = [pair["passed"]["kappa"] for pair in result["agreement"] if pair["passed"]["kappa"] is not None]
    if not kappas:
        return judged
    if len(kappas) == 1:
        return f"{judged}, Cohen's κ = {kappas[0]:.2f}"
    return f"{judged}, Cohen's κ from {min(kappas):.2f} to {max(kappas):.2f} ({len(kappas)} pairs)"
