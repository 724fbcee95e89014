"""What a finished run shows: generated comments beside their posts and references, the scores, and where things are."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cromic_ds.tracking import read_metrics

SCORES = (
    *("perplexity", "accuracy", "exact_match", "bleu_4", "rouge_l", "cider", "distinct_2"),
    *("grounded", "grounded_what", "grounded_where"),
)


def print_summary(run: Path, console: Console | None = None) -> None:
    """Print the newest evaluation of a run folder, from its files alone."""
    console = console or Console()
    samples = sorted((run / "samples").glob("step-*.jsonl"))
    if samples:
        # Folded: Chinese has no blanks to wrap at, and rich would cut the texts off.
        columns = [Column(name, overflow="fold") for name in ("post", "generated", "references")]
        table = Table(*columns, title=f"Generated comments ({samples[-1].stem})", show_lines=True)
        for line in samples[-1].read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            cells = row["post"], "\n".join(row["generated"]), " / ".join(row["references"][:3])
            table.add_row(*map(escape, cells))  # "[doge]" is part of a post and no markup
        console.print(table)
    evaluations = list(read_metrics(run, "eval"))
    if evaluations:
        scores = Table("score", "value", title="Scores")
        for name in SCORES:
            if evaluations[-1].get(name) is not None:
                scores.add_row(name, f"{evaluations[-1][name]:.4f}")
        console.print(scores)
    places = {"checkpoints": "checkpoints", "export": "export", "log": "log.txt", "numbers": "metrics.jsonl"}
    places["samples"] = "samples"
    for what, name in places.items():
        if (run / name).exists():
            console.print(f"{what:12} {run / name}", soft_wrap=True, markup=False)
    if (run / "export").exists():
        hint = f"\nTry it: cromic-ds generate {run / 'export'} --image PICTURE --post TEXT"
        console.print(hint, soft_wrap=True, markup=False)
