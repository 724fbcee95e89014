"""A small FM-IQA store, two systems' predictions for it, and a rating drawn from them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from helpers.rating_server import QUESTIONS, SYSTEMS, write_predictions
from PIL import Image

from cromic_ds.data.record import Record
from cromic_ds.data.tokenizer import SPECIAL, load_tokenizer
from cromic_ds.prepare.store_writer import StoreWriter
from cromic_ds.tools.rating.judgments import RATING_FILE, Judgments
from cromic_ds.tools.rating.rate import RateSettings, start_rating

NO_PICTURE, NO_ANSWER = 12, 13  # further records of the split, which cannot be rated


@pytest.fixture(scope="session")
def fmiqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the split `val`: 12 questions, two on each of six pictures, and two records that cannot be rated."""
    folder = tmp_path_factory.mktemp("fmiqa")
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL.values(), *"问答"]), encoding="utf-8")
    with StoreWriter(folder / "store", load_tokenizer(folder / "vocab.txt"), task="fmiqa") as writer:
        for i in range(QUESTIONS + 2):
            file = io.BytesIO()
            Image.new("RGB", (64, 48), (40 * (i // 2), 90, 200)).save(file, "JPEG")
            image_id = None if i == NO_PICTURE else f"image{i // 2}"
            record = Record(str(100 + i), f"问题{i}？", [] if i == NO_ANSWER else [f"人的回答 {i}"], image_id=image_id)
            writer.add("val", record, file.getvalue() if image_id else None)
    return folder / "store"


@pytest.fixture
def predictions(tmp_path: Path) -> list[str]:
    """The files of both systems, complete."""
    return [str(write_predictions(tmp_path / f"{name}.json", name)) for name in SYSTEMS]


@pytest.fixture
def settings(fmiqa: Path, predictions: list[str], tmp_path: Path) -> RateSettings:
    """Of a rating with four questions, so 12 answers, that is not started yet."""
    return RateSettings(
        predictions=predictions, data=str(fmiqa), split="val", count=4, seed=1, port=None, out=str(tmp_path / "rating")
    )


@pytest.fixture
def judgments(settings: RateSettings) -> Judgments:
    """The rating of `settings`, started."""
    started, _ = start_rating(Path(settings.out) / RATING_FILE, settings)
    return started
