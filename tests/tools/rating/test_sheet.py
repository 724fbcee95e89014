import json
from collections import Counter
from itertools import pairwise

import pytest

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError
from cromic_ds.tools.rating.sheet import (
    HUMAN,
    Item,
    arrange,
    parse_systems,
    read_system_answers,
    sample_questions,
    tidy,
)


class Counting:
    """A data set that notes which records are read."""

    def __init__(self, dataset):
        self.dataset, self.read, self.pictures = dataset, [], []

    def __len__(self):
        return 1_000_000_000

    def texts(self, index):
        self.read.append(index)
        return self.dataset.texts(index % 12)

    def image(self, index):
        self.pictures.append(index)
        return self.dataset.image(index % 12)


def test_a_sheet_reads_only_the_records_that_it_draws(fmiqa):
    counting = Counting(open_dataset(fmiqa, "val"))
    questions, skipped = sample_questions(counting, 5, seed=0)
    assert counting.read == counting.pictures == [question.record for question in questions]
    assert len(set(counting.read)) == 5 and not skipped
    assert max(counting.read) > 100_000_000  # from all over the split


def test_all_records_that_can_be_rated(fmiqa):
    questions, skipped = sample_questions(open_dataset(fmiqa, "val"), None, seed=0)
    assert sorted(question.record for question in questions) == list(range(12))
    assert skipped == {"no picture": 1, "no answer of a person": 1}
    assert [q.record for q in questions] != [q.record for q in sample_questions(open_dataset(fmiqa, "val"), None, 1)[0]]
    first = questions[0]
    expected = (str(100 + first.record), f"问题{first.record}？", f"人的回答{first.record}")
    assert (first.record_id, first.question, first.answer) == expected


@pytest.mark.parametrize("n_systems", [1, 2, 4])
def test_every_round_is_balanced_and_a_question_returns_after_all_others(n_systems):
    n, writers = 40, n_systems + 1
    questions = [Item(i, str(i), HUMAN, f"q{i}", f"{HUMAN} {i}") for i in range(n)]
    answers = {f"s{k}": {str(i): f"s{k} {i}" for i in range(n)} for k in range(n_systems)}
    items = list(arrange(questions, answers, seed=0))
    assert len(items) == len({(item.record, item.writer) for item in items}) == n * writers
    assert all(item.answer == f"{item.writer} {item.record}" for item in items)  # the one that this writer wrote
    for start in range(0, n * writers, n):
        of_round = items[start : start + n]
        assert [item.record for item in of_round] == list(range(n))
        assert set(Counter(item.writer for item in of_round).values()) <= {n // writers, n // writers + 1}
    first_round = [item.writer for item in items[:n]]
    repeats = sum(a == b for a, b in pairwise(first_round))
    assert 0 < repeats < n - 1  # neither taking turns nor in blocks
    assert items == list(arrange(questions, answers, seed=0)) != list(arrange(questions, answers, seed=1))


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("一只 猫 。", "一只猫。"),
        ("  It is  a CAT ", "it is a cat"),
        ("iPhone 6 手机", "iphone 6手机"),
        ("3 个", "3个"),
        ("", ""),
    ],
)
def test_nothing_of_the_writing_gives_the_writer_away(written, shown):
    assert tidy(written) == shown


def test_names_of_systems(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b=c.json", tmp_path / "human.json"]
    for file in files:
        file.touch()
    assert parse_systems([str(files[0]), str(files[1])]) == {"a": files[0], "b=c": files[1]}
    assert parse_systems([f"ours={files[0]}", str(files[0])]) == {"ours": files[0], "a": files[0]}
    with pytest.raises(UserError, match="the name 'a' is given twice; give another as NAME=FILE"):
        parse_systems([str(files[0]), str(files[0])])
    with pytest.raises(UserError, match="the name 'human' means the people's answers"):
        parse_systems([str(files[2])])
    with pytest.raises(UserError, match="nowhere: no such predictions file"):
        parse_systems(["x=nowhere"])
    with pytest.raises(UserError, match="predictions is missing"):
        parse_systems([])


def entries(ids):
    return json.dumps([{"question_id": id, "answer": f"答 {id}"} for id in ids])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entries(range(100, 113)), "13 answers for the 14 records of the split; is it of this split"),
        (entries(range(100, 115)), "15 answers for the 14 records"),
        (entries([*range(100, 114), 100]), "id '100' has two answers"),
        (entries(range(14)), r"no answer for 2 of 2 questions \(id '100' for one\)"),
        ("{}", "expected one JSON list"),
        ("[", "not JSON"),
    ],
)
def test_files_that_are_not_of_the_split(tmp_path, content, message):
    questions = [Item(0, "100", HUMAN, "q", "h"), Item(1, "101", HUMAN, "q", "h")]
    file = tmp_path / "p.json"
    file.write_text(entries(range(100, 114)))
    assert read_system_answers(file, "fmiqa", questions, 14) == {"100": "答100", "101": "答101"}
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_system_answers(file, "fmiqa", questions, 14)


def test_ids_that_repeat_cannot_be_rated(tmp_path):
    with pytest.raises(UserError, match="record id '7' is there more than once"):
        read_system_answers(tmp_path, "fmiqa", [Item(0, "7", HUMAN, "q", "h"), Item(1, "7", HUMAN, "r", "h")], 2)
