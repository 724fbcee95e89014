"""The report of a rating: PassRate and quality by writer, and the agreement of each pair of raters."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cromic_ds.errors import UserError
from cromic_ds.files import write_json
from cromic_ds.metrics.agreement import cohen_kappa, wilson
from cromic_ds.tools.rating.chart import draw_rating
from cromic_ds.tools.rating.judgments import QUALITIES, Judged, Judgments
from cromic_ds.tools.rating.sheet import HUMAN


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
    return {
        "writers": {writer: _writer_numbers(made) for writer, made in by_writer.items()},
        "raters": {
            rater: {"judgments": len(made), "pass_rate": sum(judged.passed for judged in made.values()) / len(made)}
            for rater, made in by_rater.items()
        },
        "agreement": [_pair_numbers(a, b, by_rater) for a, b in combinations(by_rater, 2)],
        "counts": {
            "items": judgments.n_items,
            "judgments": sum(map(len, by_rater.values())),
            "withdrawn": judgments.n_withdrawn(),
        },
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
        print(_pair_text(pair))


def _pair_text(pair: dict[str, Any]) -> str:
    names, n = " and ".join(pair["raters"]), pair["answers"]
    if not n:
        return f"{names}: no answer judged by both"
    kappas = [pair[k]["kappa"] for k in ("passed", "quality")]
    passed, quality = ("not defined" if kappa is None else f"{kappa:.2f}" for kappa in kappas)
    agreed = f"agree on pass or fail of {pair['passed']['agreed']:,} of {n:,} answers"
    return f"{names}: {agreed}, κ = {passed}; κ of quality = {quality}"
