"""The report of a rating, also as a chart: PassRate and quality by writer, and the agreement of each pair of raters."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cromic_ds.errors import UserError
from cromic_ds.files import write_json
from cromic_ds.metrics.agreement import cohen_kappa, wilson
from cromic_ds.tools.contact_sheet import find_font
from cromic_ds.tools.figures import BLUE, GRID, MUTED, OCHRE, png_figure, remove_frame
from cromic_ds.tools.rating.judgments import QUALITIES, Judged, Judgments
from cromic_ds.tools.rating.sheet import HUMAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUALITY_COLORS = {"0 wrong": "#dde3ea", "1 partly right": "#92b3db", "2 right": BLUE}  # a better quality is darker


def write_rating_report(judgments: Judgments, folder: Path) -> dict[str, Any]:
    """Print the results, write report.json and draw report.png. Raises UserError if nothing is judged yet."""
    result = summarize_rating(judgments)
    if not result["raters"]:
        raise UserError(f"{judgments.path}: no judgments yet")
    _print(result)
    write_json(folder / "report.json", result, indent=1)
    draw_rating(result, folder / "report.png")
    print(f"written to {folder / 'report.json'} and {folder / 'report.png'}")
    return result


def summarize_rating(judgments: Judgments) -> dict[str, Any]:
    """Return all numbers of the report.

    Judgments of the same answer are not independent, so `interval` (95%, Wilson) counts an answer once: with one rater it is
    the usual interval, with several its width is an upper bound. The agreement of two raters, on pass or fail and on quality,
    is over the answers that both judged; `kappa` is Cohen's κ, null if it is undefined.
    """
    by_writer: dict[str, list[Judged]] = {writer: [] for writer in [HUMAN, *judgments.about["systems"]]}
    by_rater: dict[str, dict[int, Judged]] = defaultdict(dict)
    for judged in judgments.valid():
        by_writer[judged.writer].append(judged)
        by_rater[judged.rater][judged.position] = judged
    n_judgments = sum(map(len, by_rater.values()))
    return {
        "writers": {writer: _writer_numbers(made) for writer, made in by_writer.items()},
        "raters": {
            rater: {"judgments": len(made), "pass_rate": sum(judged.passed for judged in made.values()) / len(made)}
            for rater, made in by_rater.items()
        },
        "agreement": [_pair_numbers(a, b, by_rater) for a, b in combinations(by_rater, 2)],
        "counts": {"items": judgments.n_items, "judgments": n_judgments, "withdrawn": judgments.n_withdrawn()},
        "sheet": judgments.about,
    }


def _writer_numbers(made: list[Judged]) -> dict[str, Any]:
    n, answers = len(made), len({judged.position for judged in made})
    if not n:
        return {"judgments": 0, "answers": 0}
    passed = sum(judged.passed for judged in made)
    return {
        "judgments": n,
        "answers": answers,
        "passed": passed,
        "pass_rate": passed / n,
        "interval": list(wilson(passed * answers / n, answers)),
        "quality": sum(judged.quality for judged in made) / n,
        "quality_counts": [sum(judged.quality == quality for judged in made) for quality in QUALITIES],
    }


def _pair_numbers(a: str, b: str, by_rater: dict[str, dict[int, Judged]]) -> dict[str, Any]:
    both = [(by_rater[a][p], by_rater[b][p]) for p in sorted(by_rater[a].keys() & by_rater[b].keys())]
    return {
        "raters": [a, b],
        "answers": len(both),
        "passed": _agreement([(x.passed, y.passed) for x, y in both]),
        "quality": _agreement([(x.quality, y.quality) for x, y in both]),
    }


def _agreement(labels: list[tuple[int, int]]) -> dict[str, Any]:
    kappa = cohen_kappa(labels)
    return {"agreed": sum(a == b for a, b in labels), "kappa": None if math.isnan(kappa) else kappa}


def _print(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("answers of", "PassRate", "95% interval", "quality (0-2)", "answers", "judgments", box=None)
    for writer, about in result["writers"].items():
        if not about["judgments"]:
            table.add_row(escape(writer), "not judged yet", "", "", "0", "0")
            continue
        low, high = about["interval"]
        rates = (f"{about['pass_rate']:.1%}", f"{low:.1%} to {high:.1%}", f"{about['quality']:.2f}")
        table.add_row(escape(writer), *rates, f"{about['answers']:,}", f"{about['judgments']:,}")
    console.print(table)
    n_items = result["counts"]["items"]
    for rater, about in result["raters"].items():
        print(f"{rater}: {about['judgments']:,} of {n_items:,} judged, {about['pass_rate']:.1%} passed")
    for pair in result["agreement"]:
        names, n = " and ".join(pair["raters"]), pair["answers"]
        if not n:
            print(f"{names}: no answer judged by both")
            continue
        kappas = [pair[k]["kappa"] for k in ("passed", "quality")]
        passed, quality = ("not defined" if kappa is None else f"{kappa:.2f}" for kappa in kappas)
        agreed = f"agree on pass or fail of {pair['passed']['agreed']:,} of {n:,} answers"
        print(f"{names}: {agreed}, κ = {passed}; κ of quality = {quality}")


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
    if len(kappas) < 2:
        return judged + "".join(f", Cohen's κ = {kappa:.2f}" for kappa in kappas)
    return f"{judged}, Cohen's κ from {min(kappas):.2f} to {max(kappas):.2f} ({len(kappas)} pairs)"
