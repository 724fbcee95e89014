import io
from pathlib import Path

import lmdb
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from cromic_ds.data import lmdb_cache
from cromic_ds.data.record import Record
from cromic_ds.data.tokenizer import SPECIAL, encode, load_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.prepare.store_writer import StoreWriter
from cromic_ds.settings import check_settings
from cromic_ds.tools import inspect as inspect_module
from cromic_ds.tools.contact_sheet import COLUMNS, PICTURE, find_font, has_chinese
from cromic_ds.tools.inspect import InspectSettings, inspect

CHARACTERS = "的图评论你好猫真· "


@pytest.fixture
def chinese_font(tmp_path) -> Path:
    """Make a font whose Chinese characters are all the same black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in [(100, 800), (900, 800), (900, 0)]:
        pen.lineTo(point)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(c): "square" for c in CHARACTERS})
    builder.setupGlyf({".notdef": empty, "square": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 100)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    file = tmp_path / "fonts" / "squares.ttf"
    file.parent.mkdir()
    builder.save(file)
    return file


@pytest.fixture
def store(tmp_path) -> Path:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*SPECIAL.values(), *"你好猫真"]), encoding="utf-8")
    tokenizer = load_tokenizer(vocab)
    with StoreWriter(tmp_path / "store", tokenizer, rejects={"missing image": 3}) as writer:
        for i in range(6):
            comments = ["好", "真好", "猫" * (i + 1)]
            post, *tokens = encode(tokenizer, ["你好", *comments], 40)
            file = io.BytesIO()
            Image.new("RGB", (64, 64), (40 * i, 0, 200)).save(file, "JPEG")
            record = Record(f"id{i}", "你好", comments, post, tokens, image_id=f"id{i}")
            writer.add("train" if i < 5 else "val", record, file.getvalue())
    return tmp_path / "store"


def test_numbers(store, tmp_path, capsys):
    inspect(InspectSettings(store=str(store), split="train", out=str(tmp_path / "sheet.png")))
    printed = capsys.readouterr().out
    assert "5 posts, 15 comments" in printed
    assert "tokens of a post, with [CLS] and [SEP]: mean 4.0, from 4 to 4" in printed
    assert "tokens of a comment, with [CLS] and [SEP]: mean 4.0, from 3 to 7" in printed  # (5·3 + 5·4 + 3+4+5+6+7) / 15
    assert "comments of a post: mean 3.0, from 3 to 3" in printed
    assert "3 ████████████████████████████████████████ 6" in printed  # the five 好 and one 猫
    assert [line.split() for line in printed.splitlines() if line.split()[:1] == ["5"] and "好" in line] == [
        ["5", "好"],
        ["5", "真好"],
    ]
    assert "rejected when it was prepared: 3 missing image" in printed


def test_without_a_chinese_font_the_text_goes_to_html(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inspect_module, "find_font", lambda: None)
    inspect(InspectSettings(store=str(store), out=str(tmp_path / "sheet.png"), comments=2))
    assert "no installed font has Chinese characters" in capsys.readouterr().out
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 5 and page.count("<p>你好</p>") == 5 and page.count("<li>真好</li>") == 5
    assert "猫猫" not in page
    assert Image.open(tmp_path / "sheet.png").width == COLUMNS * (PICTURE + 24)


def test_chinese_font_is_found_and_draws_the_text(store, tmp_path, chinese_font, capsys):
    assert has_chinese(chinese_font) and not has_chinese(store / "store.json")
    assert find_font([str(chinese_font.parent)]) == chinese_font
    assert find_font([str(store)]) is None
    inspect(
        InspectSettings(store=str(store), out=str(tmp_path / "sheet.png"), posts=1, comments=1, font=str(chinese_font))
    )
    assert "no installed font" not in capsys.readouterr().out and not (tmp_path / "sheet.html").exists()
    ink = np.asarray(Image.open(tmp_path / "sheet.png").convert("L")) < 200
    below = ink[12 + PICTURE + 20 : 12 + PICTURE + 40, 12 : 12 + PICTURE]  # the post's line: 你好
    columns = np.flatnonzero(below.any(axis=0))
    assert below.sum() == pytest.approx(2 * 12 * 12, rel=0.2)  # two squares of 0.8 · 15 pixels
    assert columns.min() < 4 and 25 < columns.max() < 30


def test_unreadable_records_are_counted_and_left_out(store, tmp_path, capsys):
    folder = store / "train" / "text-00000.lmdb"
    lmdb_cache._open.clear()
    with lmdb.open(str(folder), lock=False) as env, env.begin(write=True) as txn:
        txn.put((0).to_bytes(8, "big"), b"damaged")
    inspect(InspectSettings(store=str(store), split="train", out=str(tmp_path / "sheet.png")))
    printed = capsys.readouterr().out
    assert "unreadable: 1 damaged in" in printed and "of 4 of them" in printed


def test_published_layout(shared, tmp_path, capsys):
    inspect(InspectSettings(store=str(shared / "seed_data"), out=str(tmp_path / "sheet.png")))
    assert "10 posts, 62 comments" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": ""}, "store is missing"),
        ({"store": "nowhere"}, "nowhere: no such data set"),
        ({"split": "trian"}, r"no split 'trian' \(did you mean 'train'\?\)"),
        ({"posts": 0}, "posts must be at least 1"),
        ({"font": "nowhere.ttf"}, "not a font file with Chinese characters"),
    ],
)
def test_wrong_settings(store, tmp_path, changes, message):
    settings = {"store": str(store), "out": str(tmp_path / "sheet.png"), **changes}
    with pytest.raises(UserError, match=message):
        check_settings(InspectSettings(**settings))
        inspect(InspectSettings(**settings))
    assert not (tmp_path / "sheet.png").exists()
