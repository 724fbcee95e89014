"""The command: starting, continuing, serving, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
from helpers.rating_server import Server, write_predictions

from cromic_ds.errors import UserError
from cromic_ds.settings import check_settings
from cromic_ds.tools.rating.judgments import RATING_FILE, Judgments
from cromic_ds.tools.rating.rate import RateSettings, continue_rating, rate


def everything(judgments: Judgments) -> list:
    return [judgments.item(i) for i in range(judgments.n_items)]


def test_a_rating_continues_with_the_same_settings_or_with_none(settings, judgments, fmiqa):
    judgments.judge("Anna", 0, True, 1)
    file = Path(settings.out) / RATING_FILE
    for again in (settings, RateSettings(out=settings.out)):
        continued, dataset = continue_rating(file, again)
        assert everything(continued) == everything(judgments) and continued.place("Anna") == 1
        assert dataset.fingerprint == judgments.about["data"]["fingerprint"] and dataset.path == fmiqa.resolve()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, "contains a sheet with another seed; choose another --out"),
        ({"count": 5, "seed": 2}, "another count and seed"),
        ({"predictions": []}, "predictions is missing"),
        ({"data": ""}, "data is missing"),
        ({"data": "nowhere"}, "nowhere: no such data set"),
    ],
)
def test_another_sheet_needs_another_folder(settings, judgments, changes, message):
    before = everything(judgments)
    with pytest.raises(UserError, match=message):
        rate(replace(settings, **changes))
    assert everything(judgments) == before


def test_predictions_that_changed_are_another_sheet(settings, judgments):
    write_predictions(Path(settings.predictions[0]), "changed")
    with pytest.raises(UserError, match="another systems"):
        rate(settings)


def test_data_that_changed_is_refused(settings, judgments, store):
    with pytest.raises(UserError, match=r"not the data that .* was drawn from"):
        rate(replace(settings, data=str(store)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "out is missing"),
        ({"count": 0}, "count is 0: it must be at least 1"),
        ({"count": -1}, "count is -1: it must be at least 1"),
        ({"port": 65536}, "port is 65536"),
        ({"data": ""}, "data is missing"),
        ({"split": "vla"}, r"no split 'vla' \(did you mean 'val'\?\)"),
        ({"predictions": ["nowhere.json"]}, "nowhere.json: no such predictions file"),
        ({"report": True}, "no rating in it"),
    ],
)
def test_wrong_settings_leave_nothing_behind(settings, changes, message):
    with pytest.raises(UserError, match=message):
        wrong = replace(settings, **changes)
        check_settings(wrong)
        rate(wrong)
    assert not Path(settings.out).exists()


def test_incomplete_predictions_leave_nothing_behind(settings, tmp_path):
    write_predictions(tmp_path / "alpha-system.json", "alpha", range(100, 105))
    with pytest.raises(UserError, match=r"alpha-system\.json: "):
        rate(settings)
    assert not Path(settings.out).exists()


def test_a_split_without_answers_of_people(settings, fmiqa, tmp_path, monkeypatch):
    from cromic_ds.data.store import StoreDataset

    read = StoreDataset.texts
    monkeypatch.setattr(StoreDataset, "texts", lambda self, i: replace(read(self, i), comments=[]))
    with pytest.raises(
        UserError, match=r"split 'val' has no record to rate \(13 no answer of a person, 1 no picture\)"
    ):
        rate(settings)


def test_served_and_killed_and_served_again(settings):
    with Server(replace(settings, count=None)) as server:
        assert server.greeting[:3] == [
            "skipped: 1 records (no picture)",
            "skipped: 1 records (no answer of a person)",
            f"36 answers to judge, of human and alpha-system, beta-system; judgments in {settings.out}/{RATING_FILE}",
        ]
        place = json.load(urlopen(f"{server.url}api/place?rater=Anna"))
        server.judge(place, True, 2)
        server.kill()
    with Server(replace(settings, count=None)) as server:
        assert json.load(urlopen(f"{server.url}api/place?rater=Anna"))["position"] == 1
        assert "--report` shows the results" in server.interrupt()
        assert server.process.returncode == 0 and server.errors() == ""


def test_a_warning_for_hosts_beyond_this_machine(settings):
    with Server(replace(settings, host="0.0.0.0")) as server:
        server.interrupt()
        assert server.errors().startswith("warning: --host 0.0.0.0 lets everyone who can reach this machine")
        assert server.errors().count("\n") == 1


def test_a_port_in_use(settings):
    with Server(settings) as server, pytest.raises(UserError, match="Address already in use"):
        rate(replace(settings, port=server.port))


def test_the_report(settings, judgments, capsys):
    for position in range(12):
        judgments.judge("Anna", position, True, 2)
    rate(RateSettings(out=settings.out, report=True))
    assert "alpha-system" in capsys.readouterr().out
    assert json.loads((Path(settings.out) / "report.json").read_text())["writers"]["human"]["pass_rate"] == 1
    assert (Path(settings.out) / "report.png").read_bytes()[:4] == b"\x89PNG"
