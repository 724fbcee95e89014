import io
import json

import pytest

from cromic_ds.data.dataset import Texts
from cromic_ds.errors import UserError
from cromic_ds.tasks import TASKS
from cromic_ds.tasks.predictions import check_ids

QUESTIONS = [(Texts("262148000", "?", []), "红色，“圆”"), (Texts("393225001", "?", []), "")]
IMAGES = [(Texts("a1", "", [], {"image_id": "a1"}), "一个圆\n红色"), (Texts("b2", "", [], {"image_id": "b2"}), "方块")]

WRITTEN = {
    "vqa2": '[\n{"question_id": 262148000, "answer": "\\u7ea2\\u8272\\uff0c\\u201c\\u5706\\u201d"},\n'
    '{"question_id": 393225001, "answer": ""}\n]\n',
    "fmiqa": '[\n{"question_id": 262148000, "answer": "红色，“圆”"},\n{"question_id": 393225001, "answer": ""}\n]\n',
    "aic_icc": '[\n{"image_id": "a1", "caption": "一个圆\\n红色"},\n{"image_id": "b2", "caption": "方块"}\n]\n',
    "flickr30k_cn": '{"image_id": "a1", "caption": "一个圆\\n红色"}\n{"image_id": "b2", "caption": "方块"}\n',
    "muge": '{"image_id": "a1", "text": "一个圆\\n红色"}\n{"image_id": "b2", "text": "方块"}\n',
    "comments": '{"id": "a1", "comment": "一个圆\\n红色"}\n{"id": "b2", "comment": "方块"}\n',
}


def pairs(name):
    return QUESTIONS if name in ("vqa2", "fmiqa") else IMAGES


def written(name, some) -> str:
    file = io.StringIO()
    TASKS[name].form.write(file, some)
    return file.getvalue()


@pytest.mark.parametrize("name", TASKS)
def test_written_as_the_server_takes_it_and_read_again(name, tmp_path):
    assert written(name, iter(pairs(name))) == WRITTEN[name]
    path = tmp_path / "predictions"
    path.write_text(WRITTEN[name], encoding="utf-8")
    assert list(TASKS[name].form.read(path)) == [(texts.id, text) for texts, text in pairs(name)]


@pytest.mark.parametrize("name", TASKS)
def test_no_predictions(name, tmp_path):
    path = tmp_path / "predictions"
    path.write_text(written(name, []), encoding="utf-8")
    assert list(TASKS[name].form.read(path)) == []
    if name in ("vqa2", "fmiqa", "aic_icc"):
        assert json.loads(path.read_text()) == []


def test_ids_are_numbers_where_the_annotations_have_numbers():
    assert written("fmiqa", [(Texts("007", "", []), "x"), (Texts("7", "", []), "x")]).splitlines()[1:3] == [
        '{"question_id": "007", "answer": "x"},',
        '{"question_id": 7, "answer": "x"}',
    ]
    assert written("muge", [(Texts("7", "", [], {"image_id": 7}), "x")]) == '{"image_id": 7, "text": "x"}\n'
    assert written("muge", [(Texts("7", "", []), "x")]) == '{"image_id": "7", "text": "x"}\n'


def test_what_other_systems_write(tmp_path):
    path = tmp_path / "predictions"
    path.write_bytes(b'\xef\xbb\xbf{"score": 0.5, "text": "x", "image_id": 12}\r\n\r\n{"image_id": "b", "text": ""}')
    assert list(TASKS["muge"].form.read(path)) == [("12", "x"), ("b", "")]


LIST = "expected one JSON list"
KEYS = 'expected an object with "image_id" and "caption"'
KINDS = '"image_id" must be text or a whole number and "caption" text'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("aic_icc", "", "predictions: not JSON"),
        ("aic_icc", "[{", "predictions: not JSON"),
        ("aic_icc", '{"image_id": "a", "caption": "x"}', LIST),
        ("aic_icc", '[{"image_id": "a", "caption": "x"}, {"image_id": "b"}]', f"predictions: entry 2: {KEYS}"),
        ("aic_icc", '["a"]', f"entry 1: {KEYS}"),
        ("aic_icc", '[{"image_id": "a", "caption": ["x"]}]', rf'entry 1: {KINDS}, not "a" and \["x"\]'),
        ("aic_icc", '[{"image_id": true, "caption": "x"}]', f"entry 1: {KINDS}"),
        ("aic_icc", '[{"image_id": 1.5, "caption": "x"}]', f"entry 1: {KINDS}"),
        ("aic_icc", '[{"image_id": "a", "caption": null}]', f"entry 1: {KINDS}"),
        ("flickr30k_cn", '{"image_id": "a", "caption": "x"}\n\n{"image_id"}\n', "predictions: line 3: not JSON"),
        ("flickr30k_cn", '{"image_id": "a", "text": "x"}\n', f"line 1: {KEYS}"),
        ("flickr30k_cn", "\udcff\n", "line 1: not JSON"),
        ("flickr30k_cn", "[" * 100_000, "line 1: not JSON"),
    ],
)
def test_malformed_files(name, content, message, tmp_path):
    path = tmp_path / "predictions"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        list(TASKS[name].form.read(path))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="predictions: cannot be read"):
        list(TASKS["muge"].form.read(tmp_path / "predictions"))


def test_each_id_exactly_once():
    check_ids(iter("abc"), iter("cab"), "file")
    check_ids([], [], "file")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("ab", r"file: of the split's 3 ids each must be there exactly once, but 1 missing \(c\)$"),
        ("abcxx", r"but 1 foreign \(x\)$"),
        ("abcbb", r"but 1 duplicate \(b\)$"),
        ("xaab", r"but 1 missing \(c\), 1 foreign \(x\), 1 duplicate \(a\)$"),
        ("abcdefghi", r"but 6 foreign \(d, e, f, g, h, …\)$"),
    ],
)
def test_ids_that_do_not_fit(found, message):
    with pytest.raises(UserError, match=message):
        check_ids(found, "abc", "file")
