"""Loading an export and generating from Python; damaged exports are rejected."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cromic_ds.errors import UserError
from cromic_ds.inference.exports import find_export, write_export
from cromic_ds.inference.loaded import load
from cromic_ds.inference.settings import DecodingSettings

POST = "左边的图形是什么颜色？"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = io.BytesIO()
    Image.new("RGB", (120, 100), "red").save(file, "JPEG")
    (tmp_path / "picture.jpg").write_bytes(file.getvalue())
    return tmp_path / "picture.jpg"


# ---- generating


def test_texts_for_a_post_and_its_picture(export_folder, picture):
    export = load(export_folder, "fp32")
    assert (export.task.name, export.precision, export.answers, export.image_size) == ("comments", "fp32", None, 96)
    decoding = DecodingSettings(beams=3, num=2, max_new_tokens=4)
    both, post_alone, picture_alone = (
        export.generate(POST, picture, decoding),
        export.generate(POST, decoding=decoding),
        export.generate(image=picture, decoding=decoding),
    )
    assert [len(set(texts)) for texts in (both, post_alone, picture_alone)] == [2, 2, 2]
    encoded = [export.encode_post(POST), export.encode_post(POST, picture), export.encode_post("", picture)]
    assert export.generate_many(encoded, decoding) == [post_alone, both, picture_alone]


def test_a_picture_that_cannot_be_used(export_folder, picture):
    export = load(export_folder, "fp32")
    with pytest.raises(UserError, match="neither a picture nor a post that the model reads"):
        export.generate()
    with pytest.raises(UserError, match=r"missing.jpg: cannot be read \(No such file or directory\)"):
        export.generate(POST, "missing.jpg")
    picture.write_text("x")
    with pytest.raises(UserError, match=r"picture.jpg: not an image"):
        export.generate(POST, picture)


@pytest.mark.parametrize(("task", "longest"), [("comments", 25), ("muge", 72)])
def test_the_longest_text_is_the_tasks(smallest, tokenizer, tmp_path, task, longest):
    model = smallest()
    circle = tokenizer.convert_tokens_to_ids("圆")
    with torch.no_grad():
        model.generator.bias[circle] = 50.0
    export = load(write_export(model, tokenizer, {"task": task}, tmp_path / "export"), "fp32")
    assert export.generate(POST, decoding=DecodingSettings(beams=1)) == ["圆" * longest]


# ---- loading


def test_the_export_of_a_run_folder(export_folder, tmp_path):
    assert find_export(export_folder) == export_folder
    shutil.copytree(export_folder, tmp_path / "run" / "export")
    assert find_export(tmp_path / "run") == tmp_path / "run" / "export"


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda e: shutil.rmtree(e), r"no export \(no config.json in it\)"),
        (lambda e: (e / "config.json").write_text("{"), "cannot be read as an export .*not a valid JSON"),
        (lambda e: (e / "config.json").write_text('{"model_type": "resnet"}'), "no export of ours .*'resnet'"),
        (lambda e: (e / "model.safetensors").unlink(), "cannot be read as an export .*no file named model.safetensors"),
        (lambda e: (e / "model.safetensors").write_bytes(b"\0" * 9), "cannot be read as an export"),
        (lambda e: (e / "cromic_ds.json").write_text("{"), "cannot be read as an export"),
        (lambda e: (e / "tokenizer.json").unlink(), "tokenizer .* cannot be loaded"),
    ],
    ids=["gone", "config", "another model", "weights gone", "weights damaged", "facts", "tokenizer gone"],
)
def test_a_damaged_export_is_refused(export_folder, tmp_path, break_, message):
    copy = tmp_path / "export"
    shutil.copytree(export_folder, copy)
    for name in ("special_tokens_map.json", "vocab.txt"):
        (copy / name).unlink(missing_ok=True)
    break_(copy)
    with pytest.raises(UserError, match=message):
        load(str(copy), "fp32")


def test_an_export_with_a_missing_weight_is_refused(export_folder, tmp_path):
    copy = tmp_path / "export"
    shutil.copytree(export_folder, copy)
    weights = load_file(copy / "model.safetensors")
    del weights["generator.bias"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, such as generator.bias; export the run again"):
        load(str(copy), "fp32")


def test_a_run_folder_in_place_of_its_export(tmp_path, export_folder):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"it is a run folder: make one with `cromic-ds export .*/run --out FOLDER`"):
        load(str(tmp_path / "run"))
    shutil.copytree(export_folder, tmp_path / "run" / "export")
    with pytest.raises(UserError, match=r"it is a run folder: use .*/run/export"):
        load(str(tmp_path / "run"))
