"""Comment generation: what pretraining trains, and how its comments are scored."""

from __future__ import annotations

from cromic_ds.tasks.base import GeneratedText
from cromic_ds.tasks.predictions import Form, record_id

COMMENTS = GeneratedText(
    name="comments",
    title="Comments",
    kind="comments",
    reader=None,  # posts are prepared from raw lines or the published layout
    reads_text=True,
    tokenization="char",
    best_metric="perplexity",
    higher_is_better=False,
    form=Form("id", "comment", record_id, lines=True),
)
