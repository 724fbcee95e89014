import json

import numpy as np
import pytest
from PIL import Image

from cromic_ds.errors import UserError
from cromic_ds.tools.rating import report
from cromic_ds.tools.rating.judgments import Judgments
from cromic_ds.tools.rating.report import summarize_rating, write_rating_report
from cromic_ds.tools.rating.sheet import Item

WRITERS = ["human", "s", "s", "human", "s", "human", "human", "s", "t", "t"]


@pytest.fixture
def judgments(tmp_path) -> Judgments:
    items = [Item(i, str(i), writer, "q", "a") for i, writer in enumerate(WRITERS)]
    return Judgments.create(tmp_path / "ratings.sqlite", {"systems": {"s": "", "t": ""}}, items)


def judge(judgments: Judgments, rater: str, passed: str, quality: str) -> None:
    for position, (p, q) in enumerate(zip(passed, quality)):
        judgments.judge(rater, position, p == "p", int(q))


def test_numbers(judgments, capsys, tmp_path):
    judge(judgments, "Anna", "pfpppfpf", "20121020")
    judge(judgments, "Bo", "pfff", "2001")
    result = write_rating_report(judgments, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == result
    human, s = result["writers"]["human"], result["writers"]["s"]
    # Of people: Anna p p f p, Bo p f. Of s: Anna f p p f, Bo f f.
    assert (human["passed"], human["judgments"], human["answers"]) == (4, 6, 4)
    assert (s["passed"], s["judgments"], s["answers"]) == (2, 6, 4)
    assert s["pass_rate"] == pytest.approx(1 / 3)
    # Wilson for a share of 1/3 of 4 answers, worked out with z = 1.959964.
    assert s["interval"] == pytest.approx([0.0751, 0.7549], abs=1e-4)
    assert (human["quality"], human["quality_counts"]) == (pytest.approx(9 / 6), [1, 1, 4])
    assert result["writers"]["t"] == {"judgments": 0, "answers": 0}
    assert result["raters"]["Anna"] == {"judgments": 8, "pass_rate": 5 / 8}
    # On four answers: Anna p f p p, Bo p f f f; agreed 2 of 4, by chance 3/4·1/4 + 1/4·3/4 = 3/8.
    (pair,) = result["agreement"]
    assert pair["raters"] == ["Anna", "Bo"] and pair["answers"] == 4
    assert pair["passed"] == {"agreed": 2, "kappa": pytest.approx((0.5 - 0.375) / (1 - 0.375))}
    assert result["counts"] == {"items": 10, "judgments": 12, "withdrawn": 0}
    printed = capsys.readouterr().out
    assert "33.3%" in printed and "7.5% to 75.5%" in printed and "not judged yet" in printed
    assert "Anna: 8 of 10 judged, 62.5% passed" in printed
    assert "Anna and Bo: agree on pass or fail of 2 of 4 answers, κ = 0.20" in printed


def test_the_interval_of_one_rater_is_wilsons(judgments):
    judge(judgments, "Anna", "pffpf", "00000")
    about = summarize_rating(judgments)["writers"]["s"]
    assert (about["passed"], about["judgments"]) == (0, 3)
    assert about["interval"] == [0.0, pytest.approx(0.5615, abs=5e-5)]  # z² / (n + z²), of 3


def test_withdrawn_judgments_do_not_count(judgments):
    judge(judgments, "Anna", "p", "2")
    judgments.withdraw("Anna", 0)
    with pytest.raises(UserError, match="no judgments yet"):
        write_rating_report(judgments, judgments.path.parent)
    assert not (judgments.path.parent / "report.json").exists()
    judge(judgments, "Anna", "f", "0")
    result = summarize_rating(judgments)
    assert result["writers"]["human"]["pass_rate"] == 0 and result["counts"]["withdrawn"] == 1


def test_agreement_that_is_not_defined(judgments, capsys, tmp_path):
    judge(judgments, "Anna", "pp", "22")
    judge(judgments, "Bo", "pp", "21")
    write_rating_report(judgments, tmp_path)
    assert "agree on pass or fail of 2 of 2 answers, κ = not defined; κ of quality = 0.00" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["agreement"][0]["passed"]["kappa"] is None


@pytest.mark.parametrize("font", [True, False])
def test_the_picture_shows_rates_where_they_are(judgments, tmp_path, monkeypatch, font):
    if not font:
        monkeypatch.setattr(report, "find_font", lambda: None)
    judge(judgments, "Anna", "pffpfppfpp", "2001020022")
    report.draw_rating(summarize_rating(judgments), tmp_path / "report.png")
    pixels = np.asarray(Image.open(tmp_path / "report.png").convert("RGB")).astype(int)
    blue = np.abs(pixels - [0x2B, 0x6C, 0xB0]).sum(axis=2) < 20
    left = blue[:, : int(0.62 * pixels.shape[1])]  # the right part has blue bars
    rows = np.flatnonzero(left.sum(axis=1) > 8)  # the dots of the two systems
    split = np.flatnonzero(np.diff(rows) > 20)
    assert len(split) == 1
    first, second = rows[: split[0] + 1], rows[split[0] + 1 :]
    centres = [np.flatnonzero(left[group].any(axis=0)).mean() for group in (first, second)]
    assert centres[1] - centres[0] > 0.2 * pixels.shape[1]  # 0% of s and 100% of t
    assert not (tmp_path / "report.png.tmp").exists()
