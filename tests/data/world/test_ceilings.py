from dataclasses import dataclass

import pytest

from cromic_ds.data.dataset import Texts
from cromic_ds.data.world.ceilings import at_most, ceilings
from cromic_ds.data.world.scenes import COLOURS, SHAPES, nth_scene, scene_to_json
from cromic_ds.errors import UserError


@dataclass
class Scenes:
    n: int

    def __len__(self):
        return self.n

    def texts(self, i):
        return Texts(f"id{i}", "", [], {"scene": scene_to_json(nth_scene(i, 0))})


def test_ceilings_of_a_large_world():
    """With every scene equally frequent a question's answers are: text alone can only guess a value of the attribute."""
    colour, shape, place = 1 / len(COLOURS), 1 / len(SHAPES), 1 / 3
    values = ceilings(Scenes(2000))
    assert values["text_what"] == pytest.approx((colour + shape) / 2, abs=0.02)
    assert values["text_where"] == pytest.approx((colour + shape + 3 * place) / 5, abs=0.02)
    assert values["text"] == pytest.approx((values["text_what"] + values["text_where"]) / 2)
    # what: the biggest thing's colour, asked by shape (1/4 · 1/3) or by size (1/4 · 1/2), and as much for its shape
    assert values["image_what"] == pytest.approx(2 * (1 / 12 + 1 / 8))
    # where: any colour and shape (1/5 · 1/3 each) and the biggest thing's place (2/5 · 1/3 + 1/5 · 1/2)
    assert values["image_where"] == pytest.approx(2 / 15 + 2 / 15 + 1 / 10)
    # the biggest thing's colour, shape and place are the best of both kinds at once
    assert values["image"] == pytest.approx((values["image_what"] + values["image_where"]) / 2)
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
