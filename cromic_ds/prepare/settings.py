"""Settings of `cromic-ds prepare`."""

from dataclasses import dataclass, field
from pathlib import Path

from cromic_ds.errors import UserError, nearest
from cromic_ds.prepare.official import READERS
from cromic_ds.tasks import TASKS


@dataclass
class PrepareSettings:
    """The input of a preparation, and how it is stored."""

    text: list[str] = field(default_factory=list)
    """Files of raw lines `<id> #EOS# <post> #EOS# <comment> #EOC# <comment> ...` in UTF-8."""
    images: str = ""
    """Folder of files named <id>.<extension>, LMDB folder with the ids as keys, or TSV file of <id> TAB <base64>."""
    published: str = ""
    """Folder (or .pt file) in the published layout, instead of text and images."""
    task: str = ""
    """Downstream task (fmiqa, vqa2, aic_icc, flickr30k_cn or muge) whose official files are prepared, instead of text and
    images."""
    root: str = ""
    """Folder with the official files of the task, as their owners distribute them."""
    split: list[str] = field(default_factory=list)
    """Splits of the task; none = all whose files are there."""
    answers: str = ""
    """Answer vocabulary of vqa2: a JSON file {answer: index} or [answer, ...], or a store that has one; empty = the answers
    in the annotations of train and val."""
    min_answer_count: int = 9
    """How often an answer must occur in the annotations to be in the vocabulary."""
    tokenizer: str = ""
    """vocab.txt, tokenizer folder, name on the Hub, or "train" to learn a vocabulary from this corpus; empty = keep the token
    ids of `published`."""
    out: str = ""
    """Folder of the new store."""
    extras: str = ""
    """File of JSON lines {"id": ..., ...} whose other fields are stored with the post of that id."""
    short_side: int = 256
    """Shorter side of the stored images in pixels."""
    jpeg_quality: int = 90
    """JPEG quality of the stored images, 1 to 100."""
    records_per_shard: int = 10_000
    """Posts per shard, which is the unit of parallel work and of resuming. Posts that share an image stay together."""
    val_fraction: float = 0.01
    """Share of the posts in split val, chosen by a hash of the id. Splits of the input are kept."""
    max_post_tokens: int | None = None
    """Longest stored post or question in tokens, [CLS] and [SEP] included; longer ones are cut. null = 40, unless the task has
    a limit of its own."""
    max_comment_tokens: int | None = None
    """Longest stored comment, answer or caption in tokens, [CLS] and [SEP] included; longer ones are cut. null = 25, or 72 for
    captions."""
    vocab_size: int = 21_128
    """Largest vocabulary that `--tokenizer train` learns."""
    max_reject_rate: float = 0.1
    """Share of the lines that may be rejected; the preparation stops above it."""
    workers: int | None = None
    """Processes; null = one for each core."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if not self.out:
            raise UserError("out is missing: give the store folder to be made")
        if sum(map(bool, (self.text, self.published, self.task))) != 1:
            raise UserError("give either text (with images), or published, or task (with root)")
        if self.text and not self.images:
            raise UserError("images is missing: give the image folder, LMDB or TSV that belongs to the text")
        if self.images and not self.text:
            raise UserError("images goes with text only: the published layout and the official files have their own")
        if not self.published and not self.tokenizer:
            raise UserError('tokenizer is missing: give a vocab.txt, a tokenizer folder, a name on the Hub, or "train"')
        if self.task and self.task not in READERS:
            raise UserError(f"task is {self.task!r}{nearest(self.task, READERS)}: it must be {' or '.join(READERS)}")
        if self.task and not Path(self.root).is_dir():
            raise UserError(f"root is {self.root!r}, which is no folder: give the one with the official files")
        if not self.task and (self.root or self.split):
            raise UserError("root and split go with task only")
        if self.answers and not (self.task and TASKS[self.task].kind == "classify"):
            raise UserError("answers goes with task vqa2 only")
        bounds = {
            "short_side": (16, 4096),
            "jpeg_quality": (1, 100),
            "vocab_size": (100, 10_000_000),
            "records_per_shard": (1, 10_000_000),
            "val_fraction": (0, 0.5),
            "max_post_tokens": (3, 65_535),
            "max_comment_tokens": (3, 65_535),
            "min_answer_count": (1, 10_000_000),
            "max_reject_rate": (0, 1),
            "workers": (1, 4096),
        }
        for name, (low, high) in bounds.items():
            if (value := getattr(self, name)) is not None and not low <= value <= high:
                raise UserError(f"{name} is {value}: it must be between {low} and {high}")
