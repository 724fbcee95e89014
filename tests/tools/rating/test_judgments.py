import sqlite3
import threading
from contextlib import closing

import pytest

from cromic_ds.errors import UserError
from cromic_ds.tools.rating.judgments import Conflict, Judged, Judgments, Malformed, rater_name
from cromic_ds.tools.rating.sheet import Item


@pytest.fixture
def judgments(tmp_path) -> Judgments:
    items = [Item(i, f"id{i}", "human" if i % 2 else "s", "问", f"答{i}") for i in range(3)]
    return Judgments.create(tmp_path / "ratings.sqlite", {"systems": {"s": ""}}, items)


def rows(judgments: Judgments) -> list[tuple]:
    with closing(sqlite3.connect(judgments.path)) as db:
        return db.execute("SELECT rater, position, passed, quality, withdrawn_at IS NULL FROM judgments").fetchall()


def test_every_rater_has_a_place(judgments):
    assert judgments.n_items == 3 and judgments.item(2) == Item(2, "id2", "s", "问", "答2")
    assert judgments.item(3) is judgments.item(-1) is None
    judgments.judge("Anna", 0, True, 2)
    judgments.judge("小明", 0, False, 0)
    judgments.judge("anna ", 1, False, 1)  # the same person
    assert [judgments.place(name) for name in ("Anna", "ＡＮＮＡ", "小明", "Bo")] == [2, 2, 1, 0]
    again = Judgments(judgments.path)
    assert list(again.valid()) == [
        Judged("Anna", 0, "s", True, 2),
        Judged("Anna", 1, "human", False, 1),
        Judged("小明", 0, "s", False, 0),
    ]


def test_what_is_taken_back_is_kept_and_judged_again(judgments):
    judgments.judge("Anna", 0, True, 2)
    judgments.judge("Anna", 1, True, 2)
    with pytest.raises(Conflict, match="position 0 is not Anna's last judgment"):
        judgments.withdraw("Anna", 0)
    judgments.withdraw("Anna", 1)
    assert (judgments.place("Anna"), judgments.n_withdrawn()) == (1, 1)
    with pytest.raises(Conflict):  # a double click
        judgments.withdraw("Anna", 1)
    judgments.judge("Anna", 1, False, 0)
    assert rows(judgments) == [("anna", 0, 1, 2, 1), ("anna", 1, 1, 2, 0), ("anna", 1, 0, 0, 1)]
    with pytest.raises(Malformed):
        judgments.withdraw("Bo", -1)  # the one before the first
    with pytest.raises(Conflict):
        judgments.withdraw("Bo", 0)


@pytest.mark.parametrize(
    ("position", "quality", "error", "message"),
    [
        (0, 1, Conflict, "position 0 is already judged by Anna"),
        (2, 1, Conflict, "position 2 is not Anna's next, which is 1"),
        (3, 1, Malformed, "position 3 is not on the sheet: it has 0 to 2"),
        (-1, 1, Malformed, "position -1 is not on the sheet"),
        (10**30, 1, Malformed, "is not on the sheet"),
        (1, 3, Malformed, "quality 3 is out of range: it must be 0, 1 or 2"),
        (1, -1, Malformed, "quality -1 is out of range"),
    ],
)
def test_what_is_refused_is_not_stored(judgments, position, quality, error, message):
    judgments.judge("Anna", 0, True, 2)
    with pytest.raises(error, match=message):
        judgments.judge("Anna", position, True, quality)
    assert len(rows(judgments)) == 1


def test_the_file_itself_refuses_a_second_judgment_and_values_out_of_range(judgments):
    judgments.judge("Anna", 0, True, 2)
    insert = "INSERT INTO judgments (rater, position, passed, quality, made_at) VALUES (?, ?, ?, ?, '')"
    with closing(sqlite3.connect(judgments.path)) as db:
        db.execute("PRAGMA foreign_keys = ON")
        for values in [("anna", 0, 0, 0), ("anna", 1, 2, 0), ("anna", 1, 1, 3), ("anna", 3, 1, 1), ("bo", 0, 1, 1)]:
            with pytest.raises(sqlite3.IntegrityError):
                db.execute(insert, values)


def test_many_at_once_store_a_judgment_once(judgments):
    results: list[str] = []
    start = threading.Barrier(8)

    def judge():
        start.wait()
        try:
            Judgments(judgments.path).judge("Anna", 0, True, 1)
            results.append("stored")
        except Conflict:
            results.append("refused")

    threads = [threading.Thread(target=judge) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["refused"] * 7 + ["stored"]
    assert rows(judgments) == [("anna", 0, 1, 1, 1)]


def test_a_sheet_that_could_not_be_finished_leaves_no_file(tmp_path):
    def items():
        yield Item(0, "a", "s", "q", "a")
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        Judgments.create(tmp_path / "ratings.sqlite", {}, items())
    assert not (tmp_path / "ratings.sqlite").exists()


@pytest.mark.parametrize("name", ["", "  ", "x" * 41, "a\x00b", "\ud800", "ﷺ" * 3, None, 3, ["Anna"]])
def test_names_that_are_none(name):
    with pytest.raises(Malformed, match="rater must be a name of 1 to 40 characters"):
        rater_name(name)


def test_files_that_are_no_rating(tmp_path):
    file = tmp_path / "ratings.sqlite"
    with pytest.raises(UserError, match="not readable as a rating"):
        Judgments(file)
    assert not file.exists()  # looking for it does not make it
    file.write_text("no database")
    with pytest.raises(UserError, match="not readable as a rating"):
        Judgments(file)
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as db:
        db.execute("CREATE TABLE x (y)")
    with pytest.raises(UserError, match="format 0 of a rating, this program reads 1"):
        Judgments(tmp_path / "other.sqlite")
