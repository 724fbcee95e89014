import io
import math

import pytest
from PIL import Image

from cromic_ds.tracking.tensorboard import TensorBoardTracker
from cromic_ds.tracking.tracker import SampleRow


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    return events


def test_scalars_pictures_and_text(tmp_path):
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(jpeg, "jpeg")
    tracker = TensorBoardTracker(tmp_path)
    tracker.log(1, {"loss": 0.5, "note": "text"}, "train")
    tracker.log(1, {"perplexity": math.inf}, "eval")
    tracker.samples(1, [SampleRow("a", "好", ["r"], ["g"], jpeg.getvalue()), SampleRow("b", "好", [], ["g"])])
    tracker.finish()
    tracker.finish()
    events = read(tmp_path)
    assert events.Tags()["scalars"] == ["train/loss", "eval/perplexity"]
    assert events.Tags()["images"] == ["samples/a"]
    assert (events.Images("samples/a")[0].width, events.Images("samples/a")[0].height) == (8, 6)
    assert events.Tensors("samples/a/text_summary")[0].tensor_proto.string_val[0].decode().startswith("post: 好")


def test_a_resumed_run_shows_each_step_once(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    for step in range(1, 8):
        tracker.log(step, {"loss": float(step)}, "train")
    tracker.finish()
    tracker = TensorBoardTracker(tmp_path, resume_step=4)
    for step in range(5, 9):
        tracker.log(step, {"loss": step + 0.5}, "train")
    tracker.finish()
    points = [(e.step, e.value) for e in read(tmp_path).Scalars("train/loss")]
    assert points == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5.5), (6, 6.5), (7, 7.5), (8, 8.5)]


def test_without_the_package(monkeypatch, tmp_path):
    from cromic_ds.errors import UserError

    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"tracking\.tensorboard needs the package tensorboard"):
        TensorBoardTracker(tmp_path)
