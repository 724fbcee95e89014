"""Comment generation: what pretraining trains, and its scores."""

from __future__ import annotations

from cromic_ds.tasks.base import GeneratedText
from cromic_ds.tasks.predictions import Form, record_id

COMMENTS = GeneratedText(
    name="comments",
    kind="comments",
    reads_text=True,
    tokenization="char",
    best_metric="perplexity",
    higher_is_better=False,
    max_new_tokens=25,
    form=Form("id", "comment", record_id, lines=True),
)
