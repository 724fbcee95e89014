import random

import numpy as np
import pytest

from cromic_ds.data.dataset import Texts
from cromic_ds.errors import UserError
from cromic_ds.settings import check_settings
from cromic_ds.tasks import TASKS
from cromic_ds.tasks.results import read_result, result_json, write_result
from cromic_ds.tools.compare import CompareSettings, compare, differences

DATA = {"path": "store", "split": "val", "fingerprint": "0123"}
COLORS = ("红", "蓝", "绿", "黄")


def records(n: int = 60, per_image: int = 2) -> list[Texts]:
    draw = random.Random(0)
    made = []
    for k in range(n):
        answer = draw.choice(COLORS)
        extras = {"image_id": str(k // per_image), "answer": answer, "alternatives": list(COLORS), "kind": "what"}
        made.append(Texts(str(k), "", [f"左边是{answer}色的圆"], extras))
    return made


def write(path, texts, right: float, seed: int = 0, tokenization: str = "char", task: str = "fmiqa", **data):
    """The result of a system that knows the share `right` of the answers."""
    draw = random.Random(seed)
    said = [r.comments[0] if draw.random() < right else f"是{draw.choice(COLORS)}的" for r in texts]
    measured = TASKS[task].measure(said, texts, tokenization, False, resamples=0)
    write_result(path, result_json(TASKS[task], measured, data=DATA | data))
    return str(path)


def test_a_better_system(tmp_path, capsys):
    a = write(tmp_path / "a.json", records(), 0.3)
    b = write(tmp_path / "b.json", records(), 0.8, seed=1)
    compare(CompareSettings(a, b, resamples=999))
    rows = {row.name: row for row in differences(read_result(a), read_result(b), 999, seed=0)}
    assert rows["cider"].b - rows["cider"].a > 2
    assert rows["cider"].interval[0] > 0 and rows["cider"].p == 2 / 1000
    for name in ("bleu_1", "bleu_4", "rouge_l", "exact_match", "grounded", "grounded_what"):
        low, high = rows[name].interval
        assert low < rows[name].b - rows[name].a < high
    assert (rows["distinct_1"].interval, rows["distinct_1"].p) == (None, None)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [f"A: {a}", f"B: {b}", "fmiqa, val of store, tokenization char"]
    assert printed[-1] == "p: two-sided, paired bootstrap over 30 images, 999 resamples"
    (row,) = (line for line in printed if line.startswith("cider"))
    assert row.split()[-1] == "0.0020" and row.split()[1] == f"{rows['cider'].a:.4f}"


def test_turned_round(tmp_path):
    a, b = (read_result(write(tmp_path / f"{k}.json", records(), 0.5, seed=k)) for k in (1, 2))
    for there, back in zip(differences(a, b, 500, 0), differences(b, a, 500, 0)):
        assert (there.a, there.b, there.p) == (back.b, back.a, back.p)
        if there.interval:
            assert there.interval == pytest.approx([-back.interval[1], -back.interval[0]])


def test_a_system_and_itself(tmp_path):
    a = read_result(write(tmp_path / "a.json", records(), 0.5))
    for row in differences(a, a, 200, 0):
        assert row.p in (1, None) and row.interval in ([0, 0], None)


def test_pairing_sees_what_two_intervals_do_not(tmp_path):
    """B is right wherever A is, and on three more of 400: their intervals overlap, the differences all have one sign."""
    texts = records(400, per_image=1)
    measured = []
    for wrong in (100, 92):
        said = ["" if k < wrong else r.comments[0] for k, r in enumerate(texts)]
        measured.append(TASKS["fmiqa"].measure(said, texts, "char", False, resamples=500))
    a, b = ({"scores": m.scores, "items": read(m)} for m in measured)
    assert measured[0].intervals["exact_match"][1] > measured[1].intervals["exact_match"][0]
    (row,) = (row for row in differences(a, b, 999, 0) if row.name == "exact_match")
    assert row.interval[0] > 0 and row.p < 0.01


def read(measured):
    from cromic_ds.metrics.items import Items

    return Items.from_json(measured.items)


def test_a_single_image(tmp_path):
    a, b = (read_result(write(tmp_path / f"{k}.json", records(2), k)) for k in (0, 1))
    assert all(row.interval is None and row.p is None for row in differences(a, b, 100, 0))


def test_a_score_that_only_one_result_has(tmp_path):
    a, b = (read_result(write(tmp_path / f"{k}.json", records(), k)) for k in (0, 1))
    a["scores"]["perplexity"] = 3.5
    assert "perplexity" not in [row.name for row in differences(a, b, 10, 0)]
    b["scores"]["perplexity"] = np.inf
    (row,) = (row for row in differences(a, b, 10, 0) if row.name == "perplexity")
    assert (row.a, row.interval) == (3.5, None)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"task": "comments"}, r"task \(fmiqa and comments\): "),
        ({"tokenization": "jieba"}, r"tokenization \(char and jieba\): "),
        ({"split": "test", "fingerprint": "4567"}, r"split \(val and test\), data fingerprint \(0123 and 4567\): "),
        ({"texts": records()[:-2]}, r"records \(60 and 58, 2 only in A, 0 only in B\): "),
        ({"texts": records()[::-1]}, "the order, number or images of the records: "),
        ({"texts": records(per_image=3)}, "the order, number or images of the records: "),
    ],
)
def test_refuses_other_conditions(tmp_path, other, message):
    a = write(tmp_path / "a.json", records(), 0.5)
    b = write(tmp_path / "b.json", **{"texts": records(), "right": 0.5} | other)
    with pytest.raises(UserError, match=f"a.json and .*b.json cannot be compared, because they differ in .*{message}"):
        compare(CompareSettings(a, b))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (CompareSettings("a.json", ""), "give two result files"),
        (CompareSettings("a.json", "b.json", resamples=0), "--resamples 0"),
        (CompareSettings("/nowhere/a.json", "b.json"), "cannot be read"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        check_settings(settings)
        compare(settings)
