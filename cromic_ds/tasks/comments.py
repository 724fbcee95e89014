"""Comment generation: what pretraining trains, and its scores."""

from __future__ import annotations

from cromic_ds.data.dataset import Texts
from cromic_ds.metrics.results import score_predictions


class Comments:
    name = "comments"
    best_metric = "perplexity"
    higher_is_better = False

    def score(self, predictions: list[str], texts: list[Texts], tokenisation: str, meteor: bool) -> dict:
        """Captioning, diversity and grounding scores; METEOR on request, it takes 10 s to start.

        Records are told apart by position: ids may repeat.
        """
        numbered = {str(i): record for i, record in enumerate(texts)}
        return score_predictions(
            {str(i): prediction for i, prediction in enumerate(predictions)},
            {i: record.comments for i, record in numbered.items()},
            {i: record.extras for i, record in numbered.items()},
            tokenisation,
            meteor,
        )
