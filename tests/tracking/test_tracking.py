import json

import pytest

from cromic_ds.errors import UserError
from cromic_ds.settings import check_settings
from cromic_ds.tracking import SampleRow, TrackingSettings, open_trackers, read_metrics
from cromic_ds.tracking.tracker import MultiTracker, TimeLeft, Tracker

QUIET = {"wandb": "off", "console": "off"}


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_without_dashboards(tmp_path):
    tracker = open_trackers(TrackingSettings(**QUIET), tmp_path, {}, None, 10)
    tracker.log(1, {"loss": 1.5}, "train")
    tracker.log(1, {"perplexity": 2.0}, "eval")
    tracker.samples(1, [SampleRow("a", "好", ["r"], ["g"])])
    tracker.finish()
    tracker.finish()
    assert files_in(tmp_path) == ["metrics.jsonl", "samples/step-00000001.jsonl", "samples/step-00000001.md"]
    assert [(r["step"], r["kind"]) for r in read_metrics(tmp_path)] == [(1, "train"), (1, "eval")]


def test_with_both_dashboards(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    settings = TrackingSettings(wandb="offline", tensorboard=True, console="off")
    tracker = open_trackers(settings, tmp_path / "run", {"seed": 1}, 5, 10)
    tracker.log(6, {"loss": 1.5}, "train")
    tracker.finish()
    files = files_in(tmp_path / "run")
    assert any(name.startswith("tensorboard/events") for name in files)
    assert any(name.endswith(".wandb") for name in files)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["loss"] == 1.5


def test_other_ranks_write_nothing(tmp_path):
    tracker = open_trackers(TrackingSettings(), tmp_path, {}, None, 10, rank=1)
    tracker.log(1, {"loss": 1.0}, "train")
    tracker.samples(1, [])
    tracker.finish()
    assert type(tracker) is Tracker and files_in(tmp_path) == []


def test_log_every_is_checked():
    with pytest.raises(UserError, match=r"tracking\.log_every is 0"):
        check_settings(TrackingSettings(log_every=0))


def test_settings_are_read_as_people_write_them(tmp_path):
    """YAML reads a bare `off` as false; the dump of what was read gives the same settings again."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TrackingSettings, "tracking")
    (tmp_path / "c.yaml").write_text("tracking:\n  wandb: off\n  console: lines\n")
    read = parser.parse_args(["--config", str(tmp_path / "c.yaml"), "--tracking.log_every", "5"])
    assert (read.tracking.wandb, read.tracking.console, read.tracking.log_every) == (False, "lines", 5)
    (tmp_path / "d.yaml").write_text(parser.dump(read))
    assert parser.parse_args(["--config", str(tmp_path / "d.yaml")]).tracking == read.tracking
    assert parser.parse_args(["--tracking.wandb", "off"]).tracking.wandb == "off"


def test_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = TimeLeft(total_steps=10)
    assert clock.after(2) is None
    now[0] += 4
    assert clock.after(4) == 12  # 2 s a step, 6 steps
    now[0] += 3
    assert clock.after(5) == pytest.approx(5 * (0.95 * 2 + 0.05 * 3))
    assert clock.after(10) == 0


class Recorder(Tracker):
    def __init__(self, error=None):
        self.calls, self.error = [], error

    def log(self, step, values, kind):
        self.calls.append((step, values, kind))

    def finish(self):
        self.calls.append("finish")
        if self.error:
            raise self.error


def test_train_records_get_the_time_left_and_finish_reaches_everyone():
    first, second = Recorder(OSError("disk full")), Recorder()
    tracker = MultiTracker([first, second], TimeLeft(2))
    tracker.log(1, {"loss": 1.0}, "train")
    tracker.log(2, {"loss": 1.0}, "train")
    tracker.log(2, {"perplexity": 1.0}, "eval")
    assert second.calls == [
        (1, {"loss": 1.0}, "train"),
        (2, {"loss": 1.0, "seconds_left": 0.0}, "train"),
        (2, {"perplexity": 1.0}, "eval"),
    ]
    with pytest.raises(OSError, match="disk full"):
        tracker.finish()
    assert first.calls[-1] == second.calls[-1] == "finish"
