import random
import shutil

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor import meteor as pycoco_meteor
from pycocoevalcap.rouge.rouge import Rouge

from cromic_ds.errors import UserError
from cromic_ds.metrics import captions
from cromic_ds.metrics.bootstrap import scores_of
from cromic_ds.metrics.captions import score_segmented
from cromic_ds.metrics.items import Items
from cromic_ds.metrics.segment import segment


def corpus(n: int, seed: int = 0) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return texts over a small alphabet, so that n-grams repeat within and between records."""
    draw = random.Random(seed)

    def text():
        return "".join(draw.choices("红黄蓝色的圆方在左右边", k=draw.randint(1, 12)))

    predictions = {f"id{k}": text() for k in range(n)}
    return predictions, {i: [text() for _ in range(draw.randint(1, 5))] for i in predictions}


def caption_scores(predictions, references, tokenization="char", meteor=False) -> dict[str, float]:
    """Return the scores of one prediction per id against that id's references; those without tokens are left out."""
    targets = [[segment(text, tokenization) for text in references[i]] for i in predictions]
    hypotheses = [segment(text, tokenization) for text in predictions.values()]
    return score_segmented(hypotheses, [[text for text in texts if text] for texts in targets], meteor).scores


def pycoco(predictions, references):
    """Return pycocoevalcap's own scores on texts split into characters here."""
    hypotheses = {i: [" ".join(text)] for i, text in predictions.items()}
    targets = {i: [" ".join(text) for text in texts] for i, texts in references.items()}
    bleu, _ = Bleu(4).compute_score(targets, hypotheses, verbose=0)
    scores = {f"bleu_{n + 1}": value for n, value in enumerate(bleu)}
    scores["rouge_l"] = Rouge().compute_score(targets, hypotheses)[0]
    scores["cider"] = Cider().compute_score(targets, hypotheses)[0]
    return scores


@pytest.mark.parametrize("n", [1, 2, 100, 2000])
def test_equal_to_pycocoevalcap(n, capsys):
    predictions, references = corpus(n)
    predictions["id0"] = references["id0"][0]
    scores = caption_scores(predictions, references, meteor=False)
    assert scores == pycoco(predictions, references)
    assert scores["bleu_1"] > 0.3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("n", [1, 2, 100, 2000])
def test_the_items_sum_to_the_scores(n):
    predictions, references = corpus(n)
    predictions["id0"] = ""
    hypotheses = [" ".join(text) for text in predictions.values()]
    captions = score_segmented(
        hypotheses, [[" ".join(t) for t in texts] for texts in references.values()], meteor=False
    )
    means = {"rouge_l": captions.rouge_l, "cider": captions.cider}
    items = Items(list(predictions), list(predictions), means, bleu=captions.bleu)
    assert scores_of(items) == pytest.approx(captions.scores, rel=1e-12, abs=1e-30)


def test_words_are_those_of_jieba_without_full_stops():
    import jieba

    predictions = {"a": "一个男人在草地上踢足球。", "b": "两个女孩在舞台上跳舞"}
    references = {
        "a": ["草地上有一个踢足球的男人。", "男人在绿色的草地上踢足球"],
        "b": ["舞台上有两个跳舞的女孩。", "两个女孩在跳舞。"],
    }

    def cut(text):
        return " ".join(jieba.cut(text.strip().replace("。", "")))

    hypotheses = {i: [cut(text)] for i, text in predictions.items()}
    targets = {i: [cut(text) for text in texts] for i, texts in references.items()}
    scores = caption_scores(predictions, references, "jieba", meteor=False)
    assert scores["cider"] == Cider().compute_score(targets, hypotheses)[0] > 0
    assert scores["bleu_4"] == Bleu(4).compute_score(targets, hypotheses, verbose=0)[0][3]


def test_counts_of_an_item():
    captions = score_segmented(["红 红 色 的"], [["红 色", "红 色 的 圆 在 左"]], meteor=False)
    # both references are equally near, so the shorter counts; 红 is clipped to one; 红色, 色的; 红色的
    assert captions.bleu.tolist() == [[4, 2, 3, 2, 1, 0]]


def test_one_image_has_cider_zero_even_for_its_own_reference():
    scores = caption_scores({"a": "红色的圆在左边"}, {"a": ["红色的圆在左边"]}, meteor=False)
    assert scores["cider"] == 0
    assert scores["bleu_4"] == pytest.approx(1)
    assert scores["rouge_l"] == 1


def test_an_empty_prediction_counts_as_a_miss():
    both = caption_scores({"a": "红色", "b": ""}, {"a": ["红色"], "b": ["蓝色的"]}, meteor=False)
    assert both["rouge_l"] == 0.5
    assert both["bleu_1"] == pytest.approx(0.22313, abs=1e-5)  # precision 2/2 × brevity exp(1 - 5/2)
    nothing = caption_scores({"a": "", "b": " "}, {"a": ["红色"], "b": ["蓝色"]}, meteor=False)
    assert nothing == dict.fromkeys(["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"], 0)


def test_a_blank_reference_is_no_match_for_an_empty_prediction():
    assert caption_scores({"a": ""}, {"a": ["", "红色"]}, meteor=False)["rouge_l"] == 0


def test_nothing_to_score():
    with pytest.raises(UserError, match="nothing to score"):
        score_segmented([], [], meteor=False)


def test_no_meteor_without_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "meteor" not in caption_scores({"a": "红"}, {"a": ["红"]}, meteor=True)


@pytest.mark.parametrize("program", ["exit 1", "exec sleep 60", "while read line; do echo Error; done"])
def test_a_java_that_dies_hangs_or_talks_nonsense_leaves_meteor_out(monkeypatch, tmp_path, caplog, program):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{program}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(captions, "METEOR_SECONDS_TO_START", 0.5)
    scores = caption_scores({"a": "红"}, {"a": ["红"]}, meteor=True)
    assert "meteor" not in scores and scores["bleu_1"] == pytest.approx(1)
    assert "METEOR is left out" in caplog.text


@pytest.mark.slow
def test_meteor_equals_pycocoevalcap():
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    predictions, references = corpus(3)
    predictions["id1"] = ""
    hypotheses = {i: [" ".join(text)] for i, text in predictions.items()}
    targets = {i: [" ".join(text) for text in texts] for i, texts in references.items()}
    expected = pycoco_meteor.Meteor().compute_score(targets, hypotheses)[0]
    assert caption_scores(predictions, references, meteor=True)["meteor"] == expected > 0
