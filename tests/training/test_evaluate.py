"""The result file: scores, and all that makes them repeatable."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cromic_ds.data.dataset import open_dataset
from cromic_ds.data.tokenizer import train_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.training.checkpoint import describe
from cromic_ds.training.evaluate import EvaluateSettings, evaluate, weights_fingerprint
from cromic_ds.training.export import write_export

QUICK = {"beams": 1, "max_new_tokens": 4, "precision": "fp32", "meteor": False}


@pytest.fixture
def result(export_folder: Path, store: Path, tmp_path: Path):
    """result(limit=3, …): the content of the result file."""

    def run(**settings) -> dict:
        out = tmp_path / "results" / "result.json"
        how = {"export": str(export_folder), "data": str(store), "out": str(out), **QUICK, **settings}
        evaluate(EvaluateSettings(**how))
        return json.loads(out.read_text(encoding="utf-8"))

    return run


def test_the_result_file(result, store, export_folder, capsys):
    content = result(batch=4)  # 10 posts: the last batch is not full
    scores = content["scores"]
    assert (scores["posts"], scores["n_items"], scores["tokenisation"]) == (10, 10, "char")
    dataset = open_dataset(store, "val")
    assert scores["targets"] == sum(len(c) - 1 for i in range(10) for c in dataset.tokens(i).comments)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]), rel=1e-12)
    assert {"bleu_1", "bleu_4", "rouge_l", "cider", "distinct_1", "entropy_4", "grounded"} <= scores.keys()
    assert "meteor" not in scores
    assert content["task"] == "comments"
    assert content["precision"] == "fp32"
    assert content["data"] == {"path": str(store), "split": "val", "fingerprint": dataset.fingerprint}
    assert content["decoding"] == {
        **{"beams": 1, "num": 1, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": 4},
        **{"length_penalty": 1.0, "no_repeat_ngram_size": 0},
    }
    model = content["model"]
    assert model["export"] == str(export_folder)
    assert model["weights"] == weights_fingerprint(export_folder)
    assert (model["max_post_tokens"], model["max_comment_tokens"]) == (40, 25)
    printed = capsys.readouterr().out
    assert f"perplexity       {scores['perplexity']:.4f}" in printed
    assert "written to" in printed


def test_the_batch_size_does_not_change_the_scores(result):
    one, all_ = result(batch=1)["scores"], result(batch=32)["scores"]
    assert one.keys() == all_.keys()
    for name, value in one.items():
        assert all_[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name


def test_limit_and_split(result):
    scores = result(limit=3, split="train", batch=2, tokenisation="bert")["scores"]
    assert (scores["posts"], scores["n_items"], scores["tokenisation"]) == (3, 3, "bert")


def test_without_out_it_lies_in_the_export(smallest, tokenizer, store, tmp_path):
    export = write_export(smallest(), tokenizer, {}, tmp_path / "export")
    evaluate(EvaluateSettings(export=str(export), data=str(store), limit=1, **QUICK))
    assert json.loads((export / "evaluation-val.json").read_text())["scores"]["posts"] == 1
    assert not list(export.glob(".*"))


def test_the_fingerprint_is_of_the_weights(smallest, tokenizer, tmp_path):
    a, b = (write_export(smallest(), tokenizer, {"step": i}, tmp_path / f"export{i}") for i in range(2))
    assert weights_fingerprint(a) == weights_fingerprint(b)
    assert len(weights_fingerprint(a)) == 32
    content = bytearray((b / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (b / "model.safetensors").write_bytes(content)
    assert describe(a / "model.safetensors") != describe(b / "model.safetensors")
    assert weights_fingerprint(a) != weights_fingerprint(b)


def test_data_of_another_tokenizer_is_refused(smallest, store, tmp_path):
    other = train_tokenizer(iter(["左边的图形是什么颜色"]), 40)
    export = write_export(smallest(vocab_size=len(other)), other, {}, tmp_path / "export")
    message = r"was prepared with another tokenizer than the model's: prepare it with --tokenizer .*/export"
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateSettings(export=str(export), data=str(store), **QUICK))
    assert not list(export.glob("evaluation*"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": ""}, "--data is missing: name the store to score on"),
        ({"data": "missing"}, "missing: no such data set"),
        ({"split": "test"}, "'test'"),
        ({"export": "missing"}, r"missing: no export \(no config.json in it\)"),
        ({"beams": 0}, "beams, num and max_new_tokens must be at least 1"),
        ({"batch": 0}, "--batch 0 must be at least 1"),
        ({"limit": -1}, "--limit -1 at least 0"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"out": "."}, "is a folder: name a file"),
    ],
)
def test_what_is_refused(result, wrong, message):
    with pytest.raises(UserError, match=message):
        result(**wrong)
