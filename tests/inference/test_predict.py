"""The file for the server is complete, the same after interruptions, and never mixed from two models."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.record import Record
from cromic_ds.data.store import answers_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.inference.exports import write_export
from cromic_ds.inference.job import InferenceJob
from cromic_ds.inference.loaded import load
from cromic_ds.inference.partial_predictions import PartialPredictions
from cromic_ds.inference.predict import predict
from cromic_ds.inference.settings import PredictSettings
from cromic_ds.settings import check_settings

QUICK = {"beams": 2, "max_new_tokens": 4, "precision": "fp32", "batch": 3}
SAMPLED = {"top_p": 0.99, "temperature": 3.0}


@pytest.fixture(scope="module")
def talkative(smallest, tokenizer, tmp_path_factory) -> Path:
    """An untrained export whose texts differ from post to post."""
    facts = {"max_post_tokens": 40, "max_comment_tokens": 25}
    return write_export(smallest(embedding_std=1.0), tokenizer, facts, tmp_path_factory.mktemp("exports") / "talkative")


@pytest.fixture
def run(talkative: Path, store: Path, tmp_path: Path):
    """Return run(batch=4, …): the bytes of the predictions file, by default for the 10 posts of the sample store's `val`."""

    def start(**settings) -> bytes:
        out = tmp_path / "out" / "predictions.jsonl"
        how = {"export": str(talkative), "data": str(store), "split": "val", "out": str(out)}
        configured = PredictSettings(**{**how, **QUICK, **settings})
        check_settings(configured)
        predict(configured)
        assert sorted(p.name for p in out.parent.iterdir()) == [out.name]
        return out.read_bytes()

    return start


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "out" / "predictions.jsonl.partial.jsonl"


@pytest.fixture
def killed(run, monkeypatch, partial):
    """Return killed(2, …), which stops a run after two batches and returns the lines of the partial file."""

    def start(batches: int, **settings) -> list[bytes]:
        append, left = PartialPredictions.append, [batches]
        partial.with_name("predictions.jsonl").unlink(missing_ok=True)

        def counting(self, answered) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            append(self, answered)

        with monkeypatch.context() as patch:
            patch.setattr(PartialPredictions, "append", counting)
            with pytest.raises(KeyboardInterrupt):
                run(**settings)
        assert not partial.with_name("predictions.jsonl").exists()
        return partial.read_bytes().splitlines(keepends=True)

    return start


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The index of the first record of each batch that is decoded."""
    first, answer = [], InferenceJob._answer_batch

    def counting(self, batch, indices):
        first.append(indices.start)
        return answer(self, batch, indices)

    monkeypatch.setattr(InferenceJob, "_answer_batch", counting)
    return first


# ---- the file


def test_posts(run, talkative, store, capsys):
    lines = [json.loads(line) for line in run().decode().splitlines()]
    dataset = open_dataset(store, "val")
    job = InferenceJob(
        load(str(talkative), "fp32"), dataset, PredictSettings(data=str(store), **{**QUICK, "batch": 10})
    )
    texts = [record.text for answered in job.answer_records() for record in answered]
    assert lines == [{"id": dataset.texts(i).id, "comment": text} for i, text in enumerate(texts)]
    assert len(set(texts)) > 2
    assert "predictions.jsonl: 10 predictions for comments, split val" in capsys.readouterr().out


def test_captions(run, caption_store):
    lines = [json.loads(line) for line in run(data=str(caption_store), task="muge", split="test").splitlines()]
    assert [line["image_id"] for line in lines] == [f"t{i}" for i in range(7)]
    assert all(line.keys() == {"image_id", "text"} and line["text"] for line in lines)


def test_chosen_answers(run, smallest, tokenizer, question_store, tmp_path):
    answers = ["红色", "左边", "2"]
    facts = {"task": "vqa2", "answers_fingerprint": answers_fingerprint(answers)}
    export = write_export(smallest(n_answers=3), tokenizer, facts, tmp_path / "vqa", answers=answers)
    entries = json.loads(run(export=str(export), data=str(question_store), split="test"))
    assert [entry["question_id"] for entry in entries] == [8000, 8001, 8002, 9000, 9001]
    assert all(entry.keys() == {"question_id", "answer"} and entry["answer"] in answers for entry in entries)


# ---- stopping and resuming


@pytest.mark.parametrize("how", [{}, SAMPLED], ids=["beams", "sampled"])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_resumed_equals_uninterrupted(run, killed, decoded, how, batches, capsys):
    whole = run(**how)
    killed(batches, **how)
    decoded.clear()
    capsys.readouterr()
    assert run(**how) == whole
    assert decoded == [0, 3, 6, 9][batches:]
    assert ("resuming after" in capsys.readouterr().out) == (batches > 0)


@pytest.mark.parametrize(
    ("keep", "first"),
    [
        (lambda lines: [*lines[:6], lines[6][:-5]], 3),  # torn within a line
        (lambda lines: lines[:6], 3),  # a batch of which one line is missing
        (lambda lines: [lines[0][:9]], 0),  # torn within the first line
        (lambda lines: [], 0),
        (lambda lines: lines, 6),
    ],
    ids=["line", "batch", "head", "nothing", "whole"],
)
def test_a_torn_end_is_dropped(run, killed, decoded, partial, keep, first):
    whole = run()
    lines = killed(2)
    assert len(lines) == 1 + 2 * 3
    partial.write_bytes(b"".join(keep(lines)))
    decoded.clear()
    assert run() == whole
    assert decoded[0] == first


def test_killed_at_the_very_end_nothing_is_decoded_again(run, decoded, monkeypatch):
    whole = run()
    with monkeypatch.context() as patch:
        patch.setattr("cromic_ds.inference.predict.write_predictions", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run()
    decoded.clear()
    assert run() == whole
    assert decoded == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beams": 3}, "decoding.beams 2, and now it is 3: use that setting, or remove the file to start again"),
        ({"batch": 4}, "batch 3, and now it is 4"),
        ({"max_new_tokens": 5}, "decoding.max_new_tokens 4, and now it is 5"),
        ({"seed": 1}, "seed 0, and now it is 1"),
        ({"split": "train"}, "data.split val, and now it is train"),
    ],
)
def test_other_settings_are_refused(run, killed, partial, change, message):
    killed(1)
    before = partial.read_bytes()
    with pytest.raises(UserError, match=rf"predictions.jsonl.partial.jsonl was started with {message}"):
        run(**change)
    assert partial.read_bytes() == before


def test_other_weights_are_refused_and_the_same_ones_elsewhere_are_not(run, killed, smallest, tokenizer, tmp_path):
    one = write_export(smallest(), tokenizer, {}, tmp_path / "one")
    whole = run(export=str(one))
    killed(1, export=str(one))
    other = smallest()
    other.generator.bias.data += 1
    with pytest.raises(UserError, match=r"was started with model.weights \w{32}, and now it is \w{32}"):
        run(export=str(write_export(other, tokenizer, {}, tmp_path / "other")))
    one.rename(tmp_path / "moved")
    assert run(export=str(tmp_path / "moved")) == whole


def test_a_damaged_line_is_named(run, killed, partial):
    lines = killed(2)
    for number, damage in ((1, b"[1]\n"), (3, b"\0\0\n"), (3, b"{}\n"), (2, lines[2])):
        partial.write_bytes(b"".join([*lines[: number - 1], damage, *lines[number:]]))
        with pytest.raises(UserError, match=rf"line {number} is damaged: remove the file to start again"):
            run()


def test_two_at_once_are_refused(run, killed, partial):
    killed(1)
    with partial.open("a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing these predictions"):
            run()
    run()


# ---- data


def record(id: str, image: str, image_id: str | None = None) -> Record:
    return Record(id, extras={"image_id": image_id or id}, image_id=image)


def test_a_picture_that_cannot_be_read_gets_an_empty_text(run, killed, task_store, capsys):
    records = [record("bad", "broken"), *(record(f"a{i}", "1") for i in range(99))]
    how = {"data": str(task_store("muge", {"test": records})), "task": "muge", "split": "test"}
    how |= {"batch": 30, "max_new_tokens": 1}
    killed(1, **how)
    lines = [json.loads(line) for line in run(**how).splitlines()]
    assert (len(lines), lines[0]) == (100, {"image_id": "bad", "text": ""})
    message = "1 records could not be read; they have an empty text: bad: image cannot be decoded: not an image"
    assert message in capsys.readouterr().err


def test_an_id_that_occurs_twice_is_rejected_before_decoding(run, task_store, decoded):
    data = task_store("muge", {"test": [record("a", "1"), record("b", "1"), record("a", "1")]})
    with pytest.raises(UserError, match="id 'a' occurs more than once in 'test'; prepare it again"):
        run(data=str(data), task="muge", split="test")
    assert decoded == []


def test_a_file_that_does_not_name_every_record_is_not_written(run, task_store, partial):
    data = task_store("muge", {"test": [record("a", "1"), record("b", "1", image_id="c")]})
    with pytest.raises(UserError, match=r"predictions.jsonl: of the split's 2 ids .* 1 missing \(b\), 1 foreign \(c\)"):
        run(data=str(data), task="muge", split="test")
    assert [p.name for p in partial.parent.iterdir()] == [partial.name]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"out": ""}, "--out is missing: name the file to write"),
        ({"out": "."}, "is a folder: name a file"),
        ({"data": ""}, "--data is missing"),
        ({"split": "vale"}, "no split 'vale' .did you mean 'val'"),
        ({"task": "muge"}, "was prepared from posts with comments, and this is task muge"),
        ({"beams": 0}, "beams, num and max_new_tokens must be at least 1"),
        ({"batch": 0}, "--batch 0 must be at least 1"),
    ],
)
def test_what_is_refused(run, wrong, message):
    with pytest.raises(UserError, match=message):
        run(**wrong)
