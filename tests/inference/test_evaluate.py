"""The result file contains the task's scores of decoded texts, and all that makes them repeatable."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from cromic_ds.data.loader import DataSettings, eval_batches
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.record import Record
from cromic_ds.data.store import answers_fingerprint
from cromic_ds.data.tokenizer import train_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.files import file_digest
from cromic_ds.inference.evaluate import evaluate
from cromic_ds.inference.exports import weights_fingerprint, write_export
from cromic_ds.inference.job import InferenceJob
from cromic_ds.inference.loaded import load
from cromic_ds.inference.settings import EvaluateSettings
from cromic_ds.settings import check_settings
from cromic_ds.tasks.results import read_result

QUICK = {"beams": 1, "max_new_tokens": 4, "precision": "fp32", "meteor": False, "resamples": 20}
ANSWERS = ["红色", "左边", "2"]


@pytest.fixture
def result(export_folder: Path, store: Path, tmp_path: Path):
    """Return result(limit=3, …): the content of the result file."""

    def run(**settings) -> dict:
        out = tmp_path / "results" / "result.json"
        how = {"export": str(export_folder), "data": str(store), "out": str(out), **QUICK, **settings}
        configured = EvaluateSettings(**how)
        check_settings(configured)
        evaluate(configured)
        return json.loads(out.read_text(encoding="utf-8"))

    return run


@pytest.fixture(scope="module")
def classifier(smallest, tokenizer, tmp_path_factory) -> Path:
    """An export that chooses among the answers of `question_store`."""
    facts = {"task": "vqa2", "answers_fingerprint": answers_fingerprint(ANSWERS)}
    return write_export(
        smallest(n_answers=3), tokenizer, facts, tmp_path_factory.mktemp("vqa") / "export", answers=ANSWERS
    )


# ---- the result file


def test_comments(result, store, export_folder, capsys):
    content = result(batch=4)  # 10 posts: the last batch is not full
    scores = content["scores"]
    dataset = open_dataset(store, "val")
    targets = sum(len(c) - 1 for i in range(10) for c in dataset.tokens(i).comments)
    assert content["counts"] == {"items": 10, "images": 10, "targets": targets}
    assert (content["task"], content["tokenization"], content["predictions"]) == ("comments", "char", None)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]), rel=1e-12)
    assert {"bleu_1", "bleu_4", "rouge_l", "cider", "distinct_1", "entropy_4", "grounded"} <= scores.keys()
    assert "meteor" not in scores
    assert content["notes"][-1].startswith("loss and perplexity are by teacher forcing")
    low, high = content["intervals"]["bleu_1"]
    assert 0 <= low <= scores["bleu_1"] <= high <= 1
    assert content["data"] == {"path": str(store), "split": "val", "fingerprint": dataset.fingerprint}
    assert content["decoding"] == {
        **{"beams": 1, "num": 1, "top_k": None, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": 4},
        **{"length_penalty": 1.0, "no_repeat_ngram_size": None, "seed": 0},
    }
    model = content["model"]
    assert (model["export"], model["precision"]) == (str(export_folder), "fp32")
    assert model["weights"] == weights_fingerprint(export_folder)
    assert (model["max_post_tokens"], model["max_comment_tokens"]) == (40, 25)
    printed = capsys.readouterr().out
    assert f"{scores['perplexity']:.4f}" in printed
    assert "written to" in printed


def test_the_items_give_the_scores_again(result, tmp_path):
    content = result()
    items = read_result(tmp_path / "results" / "result.json")["items"]
    assert items.ids == [open_dataset(content["data"]["path"], "val").texts(i).id for i in range(10)]
    assert items.means["cider"].mean() == pytest.approx(content["scores"]["cider"], rel=1e-9)


def test_the_batch_size_does_not_change_the_scores(result):
    one, all_ = result(batch=1)["scores"], result(batch=32)["scores"]
    assert one.keys() == all_.keys()
    for name, value in one.items():
        assert all_[name] == pytest.approx(value, rel=1e-5), name


def test_limit_and_split(result):
    content = result(limit=3, split="train", batch=2, tokenization="bert", resamples=0)
    assert (content["counts"]["items"], content["tokenization"], content["intervals"]) == (3, "bert", {})


def test_captions(result, caption_store):
    content = result(data=str(caption_store), task="muge", max_new_tokens=None, batch=2)
    assert (content["task"], content["tokenization"], content["decoding"]["max_new_tokens"]) == ("muge", "char", 72)
    val = open_dataset(caption_store, "val")
    targets = sum(len(c) - 1 for i in range(5) for c in val.tokens(i).comments)
    assert content["counts"] == {"items": 5, "images": 5, "targets": targets}


def test_answers_are_chosen_by_the_head(result, classifier, question_store):
    content = result(export=str(classifier), data=str(question_store), batch=4)  # the task is the export's
    model = load(str(classifier), "fp32").model
    dataset = open_dataset(question_store, "val")
    how = {"image_size": 96, "micro_batch": 6, "rank": 0, "world_size": 1, "n_answers": 3}
    [batch] = eval_batches(dataset, DataSettings(workers=0), **how)
    with torch.inference_mode():
        chosen = model.answer_logits(batch).argmax(1).tolist()
    accuracy = sum([1, 0.9, 0.3][i] for i in chosen) / 6  # four of ten people said 红色, three 左边, one 2
    assert content["scores"]["accuracy"] == pytest.approx(accuracy, rel=1e-12)
    assert {"loss", "perplexity", "targets"}.isdisjoint({**content["scores"], **content["counts"]})
    assert (content["task"], content["decoding"], content["counts"]) == ("vqa2", None, {"items": 6, "images": 3})


def test_sampled_texts_are_repeatable_and_follow_from_the_seed(export_folder, store):
    def texts(**settings) -> list[str]:
        how = EvaluateSettings(
            export=str(export_folder), data=str(store), precision="fp32", top_p=0.99, temperature=3.0, **settings
        )
        job = InferenceJob(load(how.export, how.precision), open_dataset(store, "val"), how)
        return [record.text for answered in job.answer_records() for record in answered]

    assert texts(batch=4) == texts(batch=4) != texts(batch=4, seed=1)


def test_without_out_it_lies_in_the_export(smallest, tokenizer, store, tmp_path):
    export = write_export(smallest(), tokenizer, {}, tmp_path / "export")
    evaluate(EvaluateSettings(export=str(export), data=str(store), limit=1, **QUICK))
    assert json.loads((export / "evaluation-comments-val.json").read_text())["counts"]["items"] == 1
    assert not list(export.glob(".*"))


def test_a_picture_that_cannot_be_read_counts_as_no_prediction(result, task_store):
    def record(id: str, image: str) -> Record:
        return Record(id, comments=["红色圆形"], extras={"image_id": image}, image_id=image)

    records = [*(record(f"a{i}", "1") for i in range(99)), record("bad", "broken")]
    content = result(data=str(task_store("muge", {"val": records})), task="muge", max_new_tokens=1)
    assert content["counts"]["items"] == 100
    assert [note for note in content["notes"] if "unreadable" in note] == [
        "unreadable, so without a prediction: 1 records, such as bad: image cannot be decoded: not an image"
    ]
    assert "empty predictions, scored as matching nothing: 1" in content["notes"]

    store = task_store("muge", {"val": records[1:]})
    with pytest.raises(UserError, match=r"1 of 99 records of .* cannot be read \(more than 1%\), the last: 'bad'"):
        result(data=str(store), task="muge", max_new_tokens=1)


def test_the_fingerprint_is_of_the_weights(smallest, tokenizer, tmp_path):
    a, b = (write_export(smallest(), tokenizer, {"step": i}, tmp_path / f"export{i}") for i in range(2))
    assert weights_fingerprint(a) == weights_fingerprint(b)
    assert len(weights_fingerprint(a)) == 32
    content = bytearray((b / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (b / "model.safetensors").write_bytes(content)
    assert file_digest(a / "model.safetensors") != file_digest(b / "model.safetensors")
    assert weights_fingerprint(a) != weights_fingerprint(b)


# ---- model and data that do not fit together


def test_data_of_another_tokenizer_is_refused(smallest, store, tmp_path):
    other = train_tokenizer(iter(["左边的图形是什么颜色"]), 40)
    export = write_export(smallest(vocab_size=len(other)), other, {}, tmp_path / "export")
    message = r"was prepared with another tokenizer than the model's: prepare it with --tokenizer .*/export"
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateSettings(export=str(export), data=str(store), **QUICK))
    assert not list(export.glob("evaluation*"))


def test_data_of_another_task_is_refused(result, caption_store, store):
    with pytest.raises(UserError, match=r"was prepared for task muge, and this is task comments"):
        result(data=str(caption_store))
    with pytest.raises(UserError, match=r"was prepared for task muge, and this is task aic_icc"):
        result(data=str(caption_store), task="aic_icc")
    with pytest.raises(UserError, match=r"was prepared from posts with comments, and this is task muge"):
        result(task="muge")


def test_answers_that_are_not_the_models_are_refused(result, smallest, tokenizer, question_store, tmp_path):
    with pytest.raises(UserError, match=r"has no answer head \(no answers.json\): fine-tune it on vqa2"):
        result(data=str(question_store), task="vqa2")
    turned = ANSWERS[::-1]
    export = write_export(smallest(n_answers=3), tokenizer, {"task": "vqa2"}, tmp_path / "export", answers=turned)
    message = r"prepared with another answer vocabulary than the model's: .* --answers .*/export/answers.json"
    with pytest.raises(UserError, match=message):
        result(export=str(export), data=str(question_store))


def test_a_split_without_references_is_for_predict(result, caption_store, classifier, question_store):
    message = r"split 'test' of .* has no references to score against: `cromic-ds predict` writes"
    with pytest.raises(UserError, match=message):
        result(data=str(caption_store), task="muge", split="test")
    with pytest.raises(UserError, match=message):
        result(data=str(question_store), export=str(classifier), split="test")


def test_an_export_of_an_unknown_task_is_refused(smallest, tokenizer, result, tmp_path):
    export = write_export(smallest(), tokenizer, {"task": "mugs"}, tmp_path / "export")
    with pytest.raises(UserError, match=r"export: no task 'mugs' .did you mean 'muge'.*; one of comments, fmiqa, vqa2"):
        result(export=str(export))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": ""}, "--data is missing: name the store of the records"),
        ({"data": "missing"}, "missing: no such data set"),
        ({"split": "test"}, "'test'"),
        ({"task": "vqa"}, "--task: no task 'vqa' .did you mean 'vqa2'"),
        ({"export": "missing"}, r"missing: no export \(no config.json in it\)"),
        ({"beams": 0}, "beams, num and max_new_tokens must be at least 1"),
        ({"batch": 0}, "--batch 0 must be at least 1"),
        ({"limit": 0}, "--limit 0 must be at least 1, or null for all"),
        ({"resamples": -1}, "--resamples -1"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"out": "."}, "is a folder: name a file"),
    ],
)
def test_what_is_refused(result, wrong, message):
    with pytest.raises(UserError, match=message):
        result(**wrong)
