"""What a finished run shows: generated comments beside their posts and references, the scores, and where things are."""

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cromic_ds.run_folder import RunFolder
from cromic_ds.tracking import read_metrics

SHOWN_SCORES = (
    "perplexity",
    "accuracy",
    "exact_match",
    "bleu_4",
    "rouge_l",
    "cider",
    "distinct_2",
    "grounded",
    "grounded_what",
    "grounded_where",
)


def print_summary(run: Path, console: Console | None = None) -> None:
    """Print the newest evaluation of a run folder, from its files alone."""
    console, folder = console or Console(), RunFolder(run)
    samples = sorted(folder.samples.glob("step-*.jsonl"))
    if samples:
        # Folded: Chinese has no spaces to wrap at, and rich would cut the texts off.
        columns = [Column(name, overflow="fold") for name in ("post", "generated", "references")]
        table = Table(*columns, title=f"Generated comments ({samples[-1].stem})", show_lines=True)
        for line in samples[-1].read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            cells = row["post"], "\n".join(row["generated"]), " / ".join(row["references"][:3])
            table.add_row(*map(escape, cells))  # "[doge]" is part of a post, not markup
        console.print(table)
    evaluations = list(read_metrics(run, "eval"))
    if evaluations:
        scores = Table("score", "value", title="Scores")
        for name in SHOWN_SCORES:
            if evaluations[-1].get(name) is not None:
                scores.add_row(name, f"{evaluations[-1][name]:.4f}")
        console.print(scores)
    places = {"checkpoints": folder.checkpoints, "export": folder.export, "log": folder.log}
    places |= {"numbers": folder.metrics, "samples": folder.samples}
    for what, path in places.items():
        if path.exists():
            console.print(f"{what:12} {path}", soft_wrap=True, markup=False)
    if folder.export.exists():
        hint = f"\nTry it: cromic-ds generate {folder.export} --image PICTURE --post TEXT"
        console.print(hint, soft_wrap=True, markup=False)
