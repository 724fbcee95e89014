"""What a data set contains: numbers on the terminal and a sheet of pictures."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cromic_ds.data.dataset import Dataset, UnreadableRecord
from cromic_ds.data.images import BadImage, decode
from cromic_ds.data.open_dataset import available_splits, open_dataset
from cromic_ds.data.store import StoreDataset
from cromic_ds.errors import UserError
from cromic_ds.tools.contact_sheet import SheetEntry, draw_png, find_font, has_chinese, write_html

LONGEST_BAR = 40  # characters of the longest bar of a histogram
BINS = 12
COUNTED_POSTS = 100_000  # of a split, evenly spread; histograms and common comments are taken from them


@dataclass
class InspectSettings:
    """Which data to inspect, and how much of it to show."""

    store: str = ""
    """Store folder, or folder in the published layout."""
    split: str | None = None
    """Split to inspect; null = all."""
    out: str = "contact_sheet.png"
    """PNG file to write: pictures with their posts and comments."""
    posts: int = 12
    """Posts on the sheet, evenly spread over the first split that has pictures."""
    comments: int = 4
    """Comments shown with each post on the sheet."""
    top: int = 15
    """Number of most common comments to list."""
    font: str | None = None
    """Font file (.ttf, .otf, .ttc) with Chinese characters; null = an installed one."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if not self.store:
            raise UserError("store is missing: give a store folder")
        if self.posts < 1 or min(self.comments, self.top) < 0:
            raise UserError("posts must be at least 1, comments and top at least 0")
        if self.font and not (Path(self.font).is_file() and has_chinese(Path(self.font))):
            hint = "give a .ttf, .otf or .ttc file that has them"
            raise UserError(f"{self.font}: not a font file with Chinese characters; {hint}")


def inspect(settings: InspectSettings) -> None:
    """`cromic-ds inspect`: print counts, histograms and common comments, and write the contact sheet.

    Raises UserError if the data cannot be read, or if no post has a readable picture.
    """
    font = Path(settings.font) if settings.font else find_font()
    console = Console()
    splits = [settings.split] if settings.split else available_splits(settings.store)
    datasets = [open_dataset(settings.store, split) for split in splits]
    for dataset in datasets:
        _print_split(console, dataset, settings.top)
    if isinstance(datasets[0], StoreDataset):
        for reason, n in datasets[0].meta.get("rejects", {}).items():
            console.print(f"rejected when it was prepared: {n:,} {reason}", markup=False)
    entries = next(filter(None, (_entries(dataset, settings) for dataset in datasets)), None)
    if entries is None:
        raise UserError(f"{settings.store}: no post has a readable picture, so there is nothing to draw")
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_png(entries, font, out)
    print(f"contact sheet: {out}")
    if font is None:
        page = out.with_suffix(".html")
        write_html(entries, page)
        hint = f"open {page} for the text, or install one (fonts-noto-cjk), or give --font FILE"
        print(f"no installed font has Chinese characters, so the PNG shows token ids; {hint}")


def _spread(n: int, most: int) -> range:
    """Return about `most` of n positions, or all if there are fewer, evenly spread."""
    return range(0, n, max(1, n // most))


def _print_split(console: Console, dataset: Dataset, top: int) -> None:
    """Count up to COUNTED_POSTS posts of a split, and print their numbers, lengths and commonest comments."""
    unreadable, texts_of_comments = Counter[str](), Counter[str]()
    post_tokens, comment_tokens, comments_per_post = Counter[int](), Counter[int](), Counter[int]()
    for index in _spread(len(dataset), COUNTED_POSTS):
        try:
            tokens, texts = dataset.tokens(index), dataset.texts(index)
        except UnreadableRecord as error:
            unreadable[error.reason] += 1
            continue
        post_tokens[len(tokens.post)] += 1
        comments_per_post[len(tokens.comments)] += 1
        comment_tokens.update(map(len, tokens.comments))
        texts_of_comments.update(texts.comments)
    posts = post_tokens.total()
    console.rule(f"split {dataset.split}")
    of = "" if posts == len(dataset) else f" (numbers below are of {posts:,} of them, evenly spread)"
    console.print(f"{len(dataset):,} posts{of}, {comment_tokens.total():,} comments", markup=False)
    for reason, n in unreadable.most_common():
        console.print(f"unreadable: {n:,} {reason}", markup=False)
    if not posts:
        return
    _print_histogram(console, "tokens of a post, with [CLS] and [SEP]", post_tokens)
    if comment_tokens:
        _print_histogram(console, "tokens of a comment, with [CLS] and [SEP]", comment_tokens)
    _print_histogram(console, "comments of a post", comments_per_post)
    table = Table("times", "most common comments", box=None)
    for comment, n in texts_of_comments.most_common(top):
        table.add_row(f"{n:,}", escape(comment))
    console.print(table)


def _print_histogram(console: Console, title: str, lengths: Counter[int]) -> None:
    values, weights = np.array(list(lengths)), np.array(list(lengths.values()))
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // BINS)
    counts = np.bincount((values - low) // width, weights).astype(int)
    mean = float((values * weights).sum() / weights.sum())
    console.print(f"\n{title}: mean {mean:.1f}, from {low} to {high}", markup=False)
    for i, n in enumerate(counts):
        first, last = low + i * width, min(low + (i + 1) * width - 1, high)
        name = f"{first}" if first == last else f"{first}-{last}"
        console.print(f"{name:>11} {'█' * round(LONGEST_BAR * n / counts.max())} {n:,}", markup=False)


def _entries(dataset: Dataset, settings: InspectSettings) -> list[SheetEntry]:
    """Return the posts for the sheet, without those that have no readable picture."""
    entries = []
    for index in _spread(len(dataset), settings.posts):
        try:
            tokens, texts, image = dataset.tokens(index), dataset.texts(index), dataset.image(index)
            if image is None:
                continue
            decode(image)
        except (UnreadableRecord, BadImage):
            continue
        kept = [tokens.post, *tokens.comments[: settings.comments]]
        ids = [" ".join(map(str, sequence.tolist())) for sequence in kept]
        entries.append(SheetEntry(texts.id, image, texts.post, texts.comments[: settings.comments], ids))
    return entries[: settings.posts]
