"""The report of a rating: PassRate and quality by writer, agreement by pair of raters; printed, as JSON and drawn."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cromic_ds.errors import UserError
from cromic_ds.metrics.agreement import cohen_kappa, wilson
from cromic_ds.tools.rating.chart import draw
from cromic_ds.tools.rating.judgments import QUALITIES, Judged, Judgments
from cromic_ds.tools.rating.sheet import HUMAN


def write_report(judgments: Judgments, folder: Path) -> dict:
    """Print the results, write `report.json`, draw `report.png`. Raises UserError where nothing is judged yet."""
    result = summarize(judgments)
    if not result["raters"]:
        raise UserError(f"{judgments.path}: no judgments yet")
    _print(result)
    aside = folder / "report.json.tmp"
    aside.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    aside.replace(folder / "report.json")
    draw(result, folder / "report.png")
    print(f"written to {folder / 'report.json'} and {folder / 'report.png'}")
    return result


def summarize(judgments: Judgments) -> dict:
    """All numbers of the report.

    `pass_rate` is passed / judgments. Judgments of the same answer are not independent, so `interval` (95%, Wilson)
    counts an answer once, however many raters judged it: with one rater it is the usual interval, with several it is
    rather too wide than too narrow. Agreement (share, and Cohen's κ; null where that is not defined) is over the answers
    that both raters judged, on pass or fail and on quality.
    """
    by_writer: dict[str, list[Judged]] = {writer: [] for writer in [HUMAN, *judgments.about["systems"]]}
    by_rater: dict[str, dict[int, Judged]] = defaultdict(dict)
    for judged in judgments.standing():
        by_writer[judged.writer].append(judged)
        by_rater[judged.rater][judged.position] = judged
    return {
        "writers": {writer: _of_writer(made) for writer, made in by_writer.items()},
        "raters": {rater: _of_rater(list(made.values())) for rater, made in by_rater.items()},
        "agreement": [_of_pair(a, b, by_rater) for a, b in combinations(by_rater, 2)],
        "counts": {
            "items": judgments.n_items,
            "judgments": sum(map(len, by_rater.values())),
            "withdrawn": judgments.n_withdrawn(),
        },
        "sheet": judgments.about,
    }


def _of_writer(made: list[Judged]) -> dict:
    n, answers = len(made), len({judged.position for judged in made})
    if not n:
        return {"judgments": 0, "answers": 0}
    passed = sum(judged.passed for judged in made)
    counts = [sum(judged.quality == quality for judged in made) for quality in QUALITIES]
    return {
        "judgments": n,
        "answers": answers,
        "passed": passed,
        "pass_rate": passed / n,
        "interval": list(wilson(passed * answers / n, answers)),
        "quality": sum(judged.quality for judged in made) / n,
        "quality_counts": counts,
    }


def _of_rater(made: list[Judged]) -> dict:
    return {"judgments": len(made), "pass_rate": sum(judged.passed for judged in made) / len(made)}


def _of_pair(a: str, b: str, by_rater: dict[str, dict[int, Judged]]) -> dict:
    both = [(by_rater[a][p], by_rater[b][p]) for p in sorted(by_rater[a].keys() & by_rater[b].keys())]
    return {
        "raters": [a, b],
        "answers": len(both),
        "passed": _agreement([(x.passed, y.passed) for x, y in both]),
        "quality": _agreement([(x.quality, y.quality) for x, y in both]),
    }


def _agreement(labels: list[tuple[int, int]]) -> dict:
    kappa = cohen_kappa(labels)
    return {"agreed": sum(a == b for a, b in labels), "kappa": None if math.isnan(kappa) else kappa}


def _print(result: dict) -> None:
    console = Console()
    table = Table("answers of", "PassRate", "95% interval", "quality (0-2)", "answers", "judgments", box=None)
    for writer, of in result["writers"].items():
        if not of["judgments"]:
            table.add_row(escape(writer), "not judged yet", "", "", "0", "0")
            continue
        low, high = of["interval"]
        rates = (f"{of['pass_rate']:.1%}", f"{low:.1%} to {high:.1%}", f"{of['quality']:.2f}")
        table.add_row(escape(writer), *rates, f"{of['answers']:,}", f"{of['judgments']:,}")
    console.print(table)
    n_items = result["counts"]["items"]
    for rater, of in result["raters"].items():
        print(f"{rater}: {of['judgments']:,} of {n_items:,} judged, {of['pass_rate']:.1%} passed")
    for pair in result["agreement"]:
        print(_of_pair_in_words(pair))


def _of_pair_in_words(pair: dict) -> str:
    names, n = " and ".join(pair["raters"]), pair["answers"]
    if not n:
        return f"{names}: no answer judged by both"
    kappas = {
        k: "not defined" if pair[k]["kappa"] is None else f"{pair[k]['kappa']:.2f}" for k in ("passed", "quality")
    }
    agreed = f"agree on pass or fail of {pair['passed']['agreed']:,} of {n:,} answers"
    return f"{names}: {agreed}, κ = {kappas['passed']}; κ of quality = {kappas['quality']}"
