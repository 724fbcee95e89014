from dataclasses import dataclass

import pytest

from cromic_ds.data.dataset import Texts
from cromic_ds.errors import UserError
from cromic_ds.world.ceilings import at_most, ceilings
from cromic_ds.world.scenes import COLOR_WORDS, SHAPE_WORDS, nth_scene, scene_to_json


@dataclass
class Scenes:
    n: int

    def __len__(self):
        return self.n

    def texts(self, i):
        return Texts(f"id{i}", "", [], {"scene": scene_to_json(nth_scene(i, 0))})


def test_ceilings_of_a_large_world():
    """If all scenes are equally frequent, so are the answers to a question: text alone can only guess a value."""
    color, shape, place = 1 / len(COLOR_WORDS), 1 / len(SHAPE_WORDS), 1 / 3
    values = ceilings(Scenes(2000))
    assert values["text_what"] == pytest.approx((color + shape) / 2, abs=0.02)
    assert values["text_where"] == pytest.approx((color + shape + 2 * place) / 4, abs=0.02)
    assert values["text"] == pytest.approx((values["text_what"] + values["text_where"]) / 2)
    # each of three things is asked about equally often, and a comment names one
    assert [values[f"image{kind}"] for kind in ("", "_what", "_where")] == pytest.approx([1 / 3] * 3)
    assert all(share < 0.5 for share in values.values())


def test_a_small_split_stays_below_half():
    assert all(share < 0.5 for share in ceilings(Scenes(100)).values())


def test_at_most():
    assert at_most(0.25, 400) == pytest.approx(0.25 + 3.1 * (0.25 * 0.75 / 400) ** 0.5)
    assert at_most(0.0, 10) == 0.0


def test_other_data_are_refused():
    class Other(Scenes):
        def texts(self, i):
            return Texts("abc", "", [], {})

    with pytest.raises(UserError, match="abc: not of the sample world"):
        ceilings(Other(1))
