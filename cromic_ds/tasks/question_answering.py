"""Visual question answering: FM-IQA, whose answers are generated, and VQA v2.0, whose answers are classified."""

from __future__ import annotations

from dataclasses import dataclass

from cromic_ds.data.dataset import Texts
from cromic_ds.errors import UserError
from cromic_ds.metrics.measured import Measured
from cromic_ds.metrics.vqa import WHOLE_ANSWERS, measure_answers
from cromic_ds.tasks.base import GeneratedText, Task
from cromic_ds.tasks.predictions import Form, question_id


@dataclass(frozen=True, kw_only=True)
class ClassifiedAnswers(Task):
    """Answers scored by the official accuracy, which compares them whole: there is no tokenisation to choose."""

    def choose_tokenisation(self, wanted: str) -> str:
        if wanted not in ("task", self.tokenisation):
            raise UserError(f"--tokenisation {wanted}: {self.name} compares whole answers; leave the setting out")
        return self.tokenisation

    def measure(
        self,
        predictions: list[str],
        texts: list[Texts],
        tokenisation: str = WHOLE_ANSWERS,
        meteor: bool = False,
        resamples: int = 1000,
        seed: int = 0,
    ) -> Measured:
        """See `measure_answers`; `tokenisation` and `meteor` change nothing."""
        return measure_answers(predictions, texts, resamples, seed)

    def score(
        self, predictions: list[str], texts: list[Texts], tokenisation: str = WHOLE_ANSWERS, meteor: bool = False
    ) -> dict:
        """As `Task.score`, without the 65 question types, which would crowd a training log."""
        return measure_answers(predictions, texts, resamples=0, by_question_type=False).flat()

    def has_references(self, texts: Texts) -> bool:
        return bool(texts.extras.get("answers"))


# Its published score, the PassRate, is a human Turing test (`cromic-ds rate`); what is computed here is none. There is no
# server: predictions are filed as the results of VQA v2.0 are.
FMIQA = GeneratedText(
    name="fmiqa",
    kind="answer",
    reads_text=True,
    tokenisation="char",
    best_metric="cider",
    higher_is_better=True,
    max_new_tokens=25,
    form=Form("question_id", "answer", question_id, lines=False),
    exact_match=True,
)

# The server takes a list of {"question_id": number, "answer"}.
VQA2 = ClassifiedAnswers(
    name="vqa2",
    kind="classify",
    reads_text=True,
    tokenisation=WHOLE_ANSWERS,
    best_metric="accuracy",
    higher_is_better=True,
    max_new_tokens=25,
    form=Form("question_id", "answer", question_id, lines=False, ascii=True),
)
