import io
import json
import logging
import struct
import threading
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from cromic_ds.run_folder import RunFolder
from cromic_ds.tracking.tracker import SampleRow
from cromic_ds.tracking.wandb import WandbTracker, resolve_mode, run_id_of


@pytest.fixture(autouse=True)
def _no_login(monkeypatch, tmp_path):
    """Tests use no W&B login of this machine, and leave no files outside their folders."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))


def open_tracker(folder, mode="auto", **limits):
    folder.mkdir(exist_ok=True)
    kind = type("Limited", (WandbTracker,), limits)
    return kind(mode, folder, {"seed": 1, "model": {"preset": "tiny"}})


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(file, "jpeg")
    return file.getvalue()


def chunks(content: bytes):
    """The records of a short file in LevelDB's log format: 7 bytes of header, then (checksum, length, type, data)…"""
    position = 7
    while position < len(content):
        _, length, kind = struct.unpack_from("<IHB", content, position)
        assert kind == 1  # a whole record: the tests' runs fit into one block of 32 KiB
        yield content[position + 7 : position + 7 + length]
        position += 7 + length


def history(run_file):
    """The logged records of an offline run, read back from its own file."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for chunk in chunks(run_file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(chunk)
        if record.WhichOneof("record_type") == "history":
            row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows


def test_an_offline_run_with_samples_and_its_resume(tmp_path, caplog):
    caplog.set_level(logging.INFO, "cromic_ds")
    run = tmp_path / "run"
    tracker = open_tracker(run)
    tracker.log(1, {"loss": 0.5, "skipped": 0}, "train")
    tracker.log(1, {"perplexity": 3.0}, "eval")
    tracker.samples(1, [SampleRow("a", "我家的猫", ["真好看"], ["好看"], jpeg()), SampleRow("b", "字", [], ["无图"])])
    tracker.finish()
    tracker.finish()
    tracker = open_tracker(run)
    tracker.log(1, {"loss": 0.25}, "train")
    tracker.finish()

    run_id = (run / "wandb_run_id").read_text().strip()
    first, second = sorted(
        run.glob(f"wandb/offline-run-*-{run_id}*/run-{run_id}.wandb"), key=lambda f: f.stat().st_mtime
    )
    rows = history(first)
    assert rows[0] == {"step": 1, "train/loss": 0.5, "train/skipped": 0}
    assert rows[1] == {"step": 1, "eval/perplexity": 3.0}
    assert (rows[2]["step"], rows[2]["samples/_type"]) == (1, "table-file")
    assert history(second) == [{"step": 1, "train/loss": 0.25}]

    (table_file,) = first.parent.glob("files/media/table/*.table.json")
    table = json.loads(table_file.read_text())
    assert table["columns"] == ["id", "picture", "post", "references", "generated"]
    assert [row[0] for row in table["data"]] == ["a", "b"]
    assert table["data"][0][2:] == ["我家的猫", "真好看", "好看"]
    staged = [file.read_bytes() for file in (tmp_path / "data" / "artifacts" / "staging").iterdir()]
    (picture,) = [content for content in staged if content.startswith(b"\xff\xd8")]  # what `wandb sync` uploads
    assert Image.open(io.BytesIO(picture)).size == (8, 6)
    assert [r.levelname for r in caplog.records if r.name.startswith("cromic_ds")] == ["INFO", "INFO"]


class FakeWandb:
    """The part of wandb that the tracker talks to."""

    class Settings(SimpleNamespace):
        model_fields = ("init_timeout",)

    Table = Image = None

    def __init__(self, **methods):
        self.logged, self.opened = [], []
        run = dict(log=self.logged.append, finish=lambda: None, define_metric=lambda *a, **k: None, url="u", dir="d")
        self.run = SimpleNamespace(**{**run, **methods})
        self.teardown = lambda: None

    def init(self, **settings):
        self.opened.append(settings)
        return self.run


def warnings_in(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def fail(*args, **kwargs):
    raise RuntimeError("the service\nis gone")


def use(monkeypatch, fake):
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    return fake


def test_a_failing_start_is_logged_once(monkeypatch, tmp_path, caplog):
    use(monkeypatch, FakeWandb()).init = fail
    tracker = open_tracker(tmp_path, "offline")
    for step in range(1, 20):
        tracker.log(step, {"loss": 1.0}, "train")
    tracker.samples(1, [SampleRow("a", "", [], [], jpeg())])
    tracker.finish()
    assert warnings_in(caplog) == [
        "W&B failed (RuntimeError: the service is gone); the run continues, and metrics.jsonl has every number"
    ]


@pytest.mark.parametrize("method", ["log", "finish", "define_metric"])
def test_a_failing_method_is_logged_once(monkeypatch, tmp_path, caplog, method):
    use(monkeypatch, FakeWandb(**{method: fail}))
    tracker = open_tracker(tmp_path, "offline")
    for step in range(1, 5):
        tracker.log(step, {"loss": 1.0}, "train")
    tracker.finish()
    assert len(warnings_in(caplog)) == 1


def test_one_failure_does_not_end_the_recording(monkeypatch, tmp_path):
    fake = use(monkeypatch, FakeWandb())
    fake.Table = fail
    tracker = open_tracker(tmp_path, "offline")
    tracker.samples(1, [])
    tracker.log(2, {"loss": 1.0}, "train")
    tracker.finish()
    assert fake.logged == [{"step": 2, "train/loss": 1.0}]


def test_a_missing_package(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    tracker = open_tracker(tmp_path, "offline")
    tracker.log(1, {"loss": 1.0}, "train")
    tracker.finish()
    assert len(warnings_in(caplog)) == 1


def test_a_hanging_wandb_stalls_nothing(monkeypatch, tmp_path, caplog):
    release, killed = threading.Event(), []
    monkeypatch.setattr("cromic_ds.tracking.wandb._kill_service", lambda: killed.append(release.set()))
    use(monkeypatch, FakeWandb(log=lambda record: release.wait(20)))
    tracker = open_tracker(tmp_path, "offline", FINISH_SECONDS=0.3, QUEUE_RECORDS=10)
    started = time.monotonic()
    for step in range(1000):
        tracker.log(step, {"loss": 1.0}, "train")
    assert time.monotonic() - started < 2
    tracker.finish()
    assert time.monotonic() - started < 8
    assert warnings_in(caplog) == [
        "W&B is too slow: 10 records are waiting; the run continues, and metrics.jsonl has every number"
    ]
    assert len(killed) == 1


def test_online_that_cannot_be_reached_is_recorded_offline(monkeypatch, tmp_path, caplog):
    fake = use(monkeypatch, FakeWandb())

    def init(**settings):
        fake.opened.append(settings)
        if settings["mode"] == "online":
            fail()
        return fake.run

    fake.init = init
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    tracker = open_tracker(tmp_path, "auto")
    tracker.log(1, {"loss": 1.0}, "train")
    tracker.finish()
    assert [s["mode"] for s in fake.opened] == ["online", "offline"]
    assert fake.opened[0]["id"] == fake.opened[1]["id"] == run_id_of(RunFolder(tmp_path))
    assert fake.opened[1]["resume"] == "allow"
    assert fake.opened[1]["config"]["model"] == {"preset": "tiny"}
    assert len(fake.logged) == 1
    assert "cannot be reached and is recorded offline" in warnings_in(caplog)[0]


def test_wandbs_own_variables_name_the_run(monkeypatch, tmp_path):
    fake = use(monkeypatch, FakeWandb())
    open_tracker(tmp_path / "first", "offline").finish()
    monkeypatch.setenv("WANDB_PROJECT", "thesis")
    monkeypatch.setenv("WANDB_NAME", "baseline")
    open_tracker(tmp_path / "second", "offline").finish()
    assert [(s["project"], s["name"]) for s in fake.opened] == [("cromic-ds", "first"), ("thesis", "baseline")]
    assert not {"entity", "group", "tags"} & fake.opened[1].keys()  # W&B reads them itself


def test_modes(monkeypatch, tmp_path, caplog):
    assert resolve_mode("auto") == "offline"
    assert resolve_mode("offline") == "offline"
    assert warnings_in(caplog) == []
    assert resolve_mode("online") == "offline"  # without a login, it would ask for a key on the terminal
    assert "no login was found" in warnings_in(caplog)[0]

    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert (resolve_mode("auto"), resolve_mode("offline")) == ("disabled", "offline")
    monkeypatch.delenv("WANDB_MODE")

    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example:8080")
    import wandb

    wandb.teardown()  # it has read its environment already
    (tmp_path / "netrc").write_text("machine wandb.example login user password " + "x" * 40)
    assert (resolve_mode("auto"), resolve_mode("offline")) == ("online", "offline")
    wandb.teardown()
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert (resolve_mode("auto"), resolve_mode("online"), resolve_mode("offline")) == ("online", "online", "offline")


def test_the_run_id_is_kept(tmp_path):
    run_id = run_id_of(RunFolder(tmp_path))
    assert len(run_id) == 8 and run_id_of(RunFolder(tmp_path)) == run_id
    (tmp_path / "wandb_run_id").write_text("\n")  # a damaged file is written again
    assert len(run_id_of(RunFolder(tmp_path))) == 8
