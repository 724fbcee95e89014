"""Comments on one post and on many. A record that cannot be used does not stop the others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from cromic_ds.errors import UserError
from cromic_ds.inference.exports import write_export
from cromic_ds.inference.generate import comment_on, generate, read_input, read_jsonl
from cromic_ds.inference.loaded import load
from cromic_ds.inference.settings import DecodingSettings, GenerateSettings
from cromic_ds.settings import check_settings

POST = "左边的图形是什么颜色？"
QUICK = {"beams": 1, "max_new_tokens": 4, "precision": "fp32"}


def jpeg(seed: int, size: tuple[int, int] = (150, 120), kind: str = "JPEG") -> bytes:
    pixels = torch.randint(0, 256, (size[1] // 10, size[0] // 10, 3), generator=torch.Generator().manual_seed(seed))
    file = io.BytesIO()
    Image.fromarray(pixels.byte().numpy()).resize(size, Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a.jpg, b.png, c.jpg and a file that is not a picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(1))
    (folder / "b.png").write_bytes(jpeg(2, (100, 300), "PNG"))
    (folder / "c.jpg").write_bytes(jpeg(3, (97, 96)))
    (folder / "notes.txt").write_text("x")
    return folder


@pytest.fixture
def run(export_folder: Path, capsys):
    """Return run(image=…, …): the lines that `generate` prints."""

    def start(**settings) -> list[str]:
        capsys.readouterr()
        configured = GenerateSettings(export=str(export_folder), **{**QUICK, **settings})
        check_settings(configured)
        generate(configured)
        return capsys.readouterr().out.splitlines()

    return start


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


# ---- one post


def test_a_picture_and_its_post(run, pictures):
    picture = str(pictures / "a.jpg")
    assert len(run(image=picture, post=POST)) == 1
    assert len(set(run(image=picture, post=POST, beams=4, num=3))) == 3
    assert run(image=picture, post=POST) == run(image=picture, post=POST)


def test_a_picture_alone_and_a_post_alone(run, pictures):
    assert len(run(image=str(pictures / "a.jpg"))) == 1
    assert len(run(post=POST)) == 1


def test_the_seed_decides_the_samples(run, pictures):
    how = {"image": str(pictures / "a.jpg"), "post": POST, "top_p": 0.99, "temperature": 3.0, "num": 4}
    assert run(**how, seed=1) == run(**how, seed=1) != run(**how, seed=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to comment on: give --image and --post, or --input"),
        ({"image": "missing.jpg", "post": POST}, "missing.jpg: cannot be read .No such file or directory"),
        ({"image": "pictures/notes.txt", "post": POST}, "pictures/notes.txt: not an image"),
        ({"image": "pictures", "post": POST}, "pictures: cannot be read .Is a directory"),
        (
            {"image": "pictures/a.jpg", "input": "pictures"},
            "give --image for one picture or --input for many, not both",
        ),
        ({"post": POST, "beams": 2, "num": 3}, "3 texts from 2 beams"),
        ({"post": POST, "batch": 0}, "--batch 0 must be at least 1"),
        ({"post": POST, "precision": "fp8"}, "precision is 'fp8'"),
        ({"input": "missing"}, "missing: no such folder or file"),
        ({"input": "empty"}, r"empty: no pictures in it \(.jpg"),
        ({"input": "pictures", "out": "pictures"}, "--out pictures is a folder: name a file"),
        ({"input": "pictures", "out": "pictures/a.jpg/x.jsonl"}, "--out pictures/a.jpg/x.jsonl: cannot be written"),
    ],
)
def test_what_is_refused(run, pictures, monkeypatch, settings, message):
    monkeypatch.chdir(pictures.parent)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message):
        run(**settings)


def test_a_truncated_picture_is_refused(run, pictures):
    (pictures / "a.jpg").write_bytes(jpeg(1)[:-500])
    with pytest.raises(UserError, match=r"a\.jpg: "):
        run(image=str(pictures / "a.jpg"), post=POST)


# ---- many posts


def test_a_folder_of_pictures(run, pictures, tmp_path):
    printed = run(input=str(pictures), post=POST, batch=2)
    records = [json.loads(line) for line in printed]
    assert [Path(r["image"]).name for r in records] == ["a.jpg", "b.png", "c.jpg"]
    assert all(r["post"] == POST and len(r["comments"]) == 1 for r in records)
    alone = [run(image=str(pictures / name), post=POST) for name in ("a.jpg", "b.png", "c.jpg")]
    assert [r["comments"] for r in records] == alone
    out = tmp_path / "new" / "out.jsonl"
    assert run(input=str(pictures), post=POST, out=str(out)) == []
    assert read(out) == records


def test_jsonl_continues_after_records_that_cannot_be_used(export_folder, pictures, tmp_path, capsys):
    (pictures / "broken.jpg").write_bytes(jpeg(1)[:300])
    source = write_jsonl(
        pictures / "posts.jsonl",
        {"image": "a.jpg", "post": POST, "id": 7, "tags": ["x"]},
        {"image": "broken.jpg", "post": POST},
        {"post": "只有文字"},
        {"image": "missing.jpg"},
        {"image": "c.jpg", "post": ""},
        {"image": None, "post": ""},
        {"image": "notes.txt", "post": None},
    )
    out = tmp_path / "out.jsonl"
    for batch in (2, 32):
        settings = GenerateSettings(export=str(export_folder), input=str(source), out=str(out), batch=batch, **QUICK)
        generate(settings)
        assert capsys.readouterr().err == "4 records could not be used; they have an 'error' in the output\n"
        records = read(out)
        assert [sorted(r.keys() & {"comments", "error"}) for r in records] == [
            *(["comments"], ["error"], ["comments"], ["error"], ["comments"], ["error"], ["error"])
        ]
        assert (records[0]["id"], records[0]["tags"]) == (7, ["x"])
        assert "broken.jpg: " in records[1]["error"]
        assert records[3]["error"].endswith("missing.jpg: cannot be read (No such file or directory)")
        assert records[5]["error"] == "neither a picture nor a post that the model reads"
        assert "notes.txt: not an image" in records[6]["error"]
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"posts.jsonl: line 3 is not JSON \(Expecting property name"),
        (b"[1]", 'posts.jsonl: line 3 is no object with "image" or "post"'),
        (b'{"text": "x"}', 'posts.jsonl: line 3 is no object with "image" or "post"'),
        (b'{"post": 5}', 'posts.jsonl: line 3: "image" and "post" must be text'),
        (b'{"post": "\xff"}', r"posts.jsonl: line 3 is not JSON \('utf-8' codec"),
    ],
)
def test_a_bad_line_stops_it_and_leaves_nothing(run, tmp_path, line, message):
    source = tmp_path / "posts.jsonl"
    source.write_bytes(b'{"post": "' + POST.encode() + b'"}\n\n' + line + b"\n")  # an empty line is skipped
    with pytest.raises(UserError, match=message):
        run(input=str(source), out=str(tmp_path / "out.jsonl"), batch=1)
    assert [p.name for p in tmp_path.iterdir()] == ["posts.jsonl"]


def test_records_are_read_one_at_a_time(tmp_path):
    source = tmp_path / "posts.jsonl"
    source.write_text('{"post": "一"}\n{"image": "p/x.jpg"}\nnot yet read\n', encoding="utf-8")
    records = read_input(source, "")
    assert [next(records), next(records)] == [{"post": "一"}, {"image": str(tmp_path / "p" / "x.jpg")}]
    with pytest.raises(UserError):
        next(records)
    assert next(read_jsonl(source)) == {"post": "一"}


# ---- what the model reads


@pytest.mark.parametrize(("mode", "given"), [("t", {"post": POST}), ("v", {"image": "a.jpg"})])
def test_a_model_of_one_mode_ignores_the_other_input(smallest, tokenizer, pictures, tmp_path, monkeypatch, mode, given):
    monkeypatch.chdir(pictures)
    write_export(smallest(mode=mode), tokenizer, {}, tmp_path / "export")
    records = [{"image": "a.jpg", "post": POST}, dict(given), {"image": "a.jpg"} if mode == "t" else {"post": POST}]
    decoding = DecodingSettings(beams=1, max_new_tokens=4)
    both, one, none = comment_on(load(tmp_path / "export", "fp32"), records, decoding, batch=32)
    assert both["comments"] == one["comments"]
    assert none["error"] == "neither a picture nor a post that the model reads"
