import json
import math

import pytest

from cromic_ds.data.dataset import Texts
from cromic_ds.errors import UserError
from cromic_ds.metrics.items import Items
from cromic_ds.tasks import TASKS
from cromic_ds.tasks.results import read_result, result_json, result_table, write_result

DATA = {"path": "store", "split": "val", "fingerprint": "0123"}


@pytest.fixture
def result():
    texts = [Texts("1", "", ["红色"], {"image_id": "x"}), Texts("2", "", ["蓝色"], {"image_id": "y"})]
    measured = TASKS["comments"].measure(["红色", "红"], texts, "char", False, resamples=50)
    measured.scores["perplexity"] = math.inf
    measured.counts["targets"] = 1234
    return result_json(TASKS["comments"], measured, data=DATA, decoding={"beams": 5}, model={"weights": "ab"})


def test_written_and_read(result, tmp_path):
    write_result(tmp_path / "result.json", result)
    lines = (tmp_path / "result.json").read_text(encoding="utf-8").splitlines()
    assert lines[-2].startswith('"items": {"ids": ["1", "2"], ')  # always on one line
    again = read_result(tmp_path / "result.json")
    assert isinstance(again["items"], Items) and again["items"].to_json() == result["items"]
    assert again | {"items": 0} == result | {"items": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_table(result):
    lines = result_table(result).splitlines()
    assert lines[0] == "comments, val of store"
    assert "rouge_l     0.5000  [0.0000, 1.0000]" in lines
    assert "perplexity  inf" in lines
    assert "2 items, 2 images, 1,234 targets; tokenization char" in lines


def test_not_writable(result, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/result\.json: cannot be written"):
        write_result(tmp_path / "nowhere" / "result.json", result)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written"):
        write_result(tmp_path / "folder", result)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": None}, "no result file, 'items' is missing"),
        ({"task": 3}, "no result file, 'task' is missing"),
        ({"scores": {"cider": "much"}}, "scores are not all numbers"),
        ({"items": {"ids": []}}, "items are damaged"),
        ({"items": {"ids": ["1"], "images": [], "means": {}, "groups": []}}, "items are damaged"),
        ({"items": {"ids": ["1"], "images": ["1"], "means": {"m": [[1]]}, "groups": []}}, "items are damaged"),
        ({"items": {"ids": ["1"], "images": ["1"], "means": [], "groups": []}}, "items are damaged"),
    ],
)
def test_damaged(result, tmp_path, changes, message):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result | changes))
    with pytest.raises(UserError, match=message):
        read_result(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "no result file"), ("{", "not JSON"), ("\udcff", "not JSON"), (None, "cannot be read")],
)
def test_no_result(tmp_path, content, message):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_result(path)
