"""Settings of the commands that use an export, and of evaluation in training. Imports nothing heavy: `--help` reads them."""

from dataclasses import dataclass
from typing import Literal

from cromic_ds.errors import UserError, nearest
from cromic_ds.tasks import TASKS, Task


@dataclass
class DecodingSettings:
    """How texts are generated."""

    beams: int = 5
    """Width of the beam search; 1 is greedy decoding."""
    num: int = 1
    """Texts per post."""
    top_k: int | None = None
    """Sample from the k most likely tokens; null sets no limit."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability; 1 sets no limit."""
    temperature: float = 1.0
    """Sampling temperature. Any value but 1, like top_k and top_p, selects sampling instead of beam search."""
    max_new_tokens: int | None = None
    """Maximum length of a text in tokens; null takes the task's: 25 for comments and answers, 72 for captions."""
    length_penalty: float = 1.0
    """Exponent of the length that beam scores are divided by; values above 1 favor longer texts."""
    no_repeat_ngram_size: int | None = None
    """Never repeat an n-gram of this size within a text; null allows all repetitions."""

    @property
    def samples(self) -> bool:
        """Whether texts are sampled instead of searched with beams."""
        return self.top_k is not None or self.top_p < 1 or self.temperature != 1

    def check(self) -> None:
        if self.beams < 1 or self.num < 1 or (self.max_new_tokens is not None and self.max_new_tokens < 1):
            raise UserError("decoding: beams, num and max_new_tokens must be at least 1")
        if not 0 < self.top_p <= 1 or self.temperature <= 0:
            raise UserError("decoding: top_p must be in (0, 1], temperature above 0")
        for name in ("top_k", "no_repeat_ngram_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"decoding: {name} is {value}: give at least 1, or null for no limit")
        if not self.samples and self.num > self.beams:
            raise UserError(
                f"decoding: {self.num} texts from {self.beams} beams: use at least {self.num} beams, or sample (top_p)"
            )


@dataclass
class EvalSettings:
    """When a run is evaluated, and on what."""

    every: int | None = 500
    """Steps between evaluations; null evaluates only at the end."""
    examples: int | None = None
    """Number of examples of the evaluation split that the perplexity is computed on; null takes all."""
    generate: int = 200
    """Number of examples, the first of the split, that texts are generated for and scored."""
    pictures: int = 8
    """Number of generated examples that are shown with their pictures."""
    micro_batch: int = 32
    """Posts per rank in one evaluation batch."""
    tokenization: Literal["task", "char", "jieba", "bert"] = "task"
    """Tokenization of texts for BLEU and the like; task is that of the task's official score."""
    beams: int = 1
    """Width of the beam search that generates texts; 1 is greedy decoding."""

    def check(self) -> None:
        """Raise UserError for values that cannot work: the first evaluation may be hours away."""
        for name in ("every", "examples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"eval.{name} is {value}: give at least 1, or null")
        if min(self.micro_batch, self.beams) < 1 or min(self.generate, self.pictures) < 0:
            raise UserError("eval: micro_batch and beams must be at least 1; generate and pictures at least 0")


def find_task(name: str, where: str) -> Task:
    """Return the task of that name. Raises UserError, which begins with `where`, if there is none."""
    if name not in TASKS:
        raise UserError(f"{where}: no task {name!r}{nearest(name, TASKS)}; one of {', '.join(TASKS)}")
    return TASKS[name]


@dataclass
class InferenceSettings(DecodingSettings):
    """A model, and how texts are generated."""

    export: str = ""
    """Export folder."""
    batch: int = 32
    """Posts decoded together."""
    seed: int = 0
    """Seed of everything that is drawn at random."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of matrix products; auto is the fastest that the device computes natively."""

    def check(self) -> None:
        super().check()
        if self.batch < 1:
            raise UserError(f"--batch {self.batch} must be at least 1")


@dataclass
class GenerateSettings(InferenceSettings):
    """A model, its input, and how texts are generated."""

    image: str | None = None
    """Picture file."""
    post: str = ""
    """Text of the post; if the input is a folder, the post of every picture."""
    input: str | None = None
    """Many posts at once: a folder of pictures, or a JSONL file of {"image": path, "post": text}. Other keys are kept, and
    picture paths are relative to the file."""
    out: str | None = None
    """JSONL file to write for `input`; null writes to standard output."""

    def check(self) -> None:
        super().check()
        if self.input and self.image:
            raise UserError("give --image for one picture or --input for many, not both")
        if not self.input and not self.image and not self.post:
            raise UserError("nothing to comment on: give --image and --post, or --input FOLDER_OR_JSONL")


@dataclass
class JobSettings(InferenceSettings):
    """A model, the records that it answers, and how texts are generated."""

    task: str | None = None
    """comments, fmiqa, vqa2, aic_icc, flickr30k_cn or muge; null takes the task that the export was trained for."""
    data: str = ""
    """Store, or folder in the published layout."""

    def check(self) -> None:
        super().check()
        if not self.data:
            raise UserError("--data is missing: name the store of the records")
        if self.task is not None:
            find_task(self.task, "--task")


@dataclass
class EvaluateSettings(JobSettings):
    """A model, the data it is scored on, and how texts are generated."""

    split: str = "val"
    """Split to score."""
    out: str | None = None
    """Result file; null writes EXPORT/evaluation-TASK-SPLIT.json."""
    limit: int | None = None
    """Score only this many examples, the first of the split; null scores all."""
    tokenization: Literal["task", "char", "jieba", "bert"] = "task"
    """Tokenization of texts for the scores; task is that of the task's official score."""
    meteor: bool = True
    """Also score METEOR if Java is installed."""
    resamples: int = 1000
    """Bootstrap resamples of the images for the confidence intervals; with 0 there are no intervals."""

    def check(self) -> None:
        super().check()
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit} must be at least 1, or null for all")
        if self.resamples < 0:
            raise UserError(f"--resamples {self.resamples} must be at least 0")


@dataclass
class PredictSettings(JobSettings):
    """A model, the records that it answers, how texts are generated, and the file to write."""

    split: str = "test"
    """Split to predict."""
    out: str = ""
    """File to write. If interrupted, run the same command again to resume."""

    def check(self) -> None:
        super().check()
        if not self.out:
            raise UserError("--out is missing: name the file to write")


@dataclass
class ImportSettings:
    """The published checkpoint, its tokenizer, and the export to write."""

    state_dict: str
    """The published code's .pt file: a state dict, or a dict that holds one."""
    tokenizer: str
    """The tokenizer it was trained with: vocab.txt, folder or Hub name (bert-base-chinese)."""
    out: str
    """Export folder to write."""
    mode: Literal["t+v", "v", "t"] = "t+v"
    """What the encoder reads: text and image, image only, or text only."""
