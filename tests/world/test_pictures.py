import numpy as np
import pytest

from cromic_ds.world.pictures import RADII, RGB, draw_scene
from cromic_ds.world.scenes import COLOR_WORDS, N_SCENES, SHAPE_WORDS, numbered_scene


def things_seen(image):
    """Return (left, right, top, bottom, pixels, median color) of each colored spot, from left to right; no two overlap."""
    pixels = np.asarray(image).astype(int)
    colored = np.abs(pixels - pixels[0, 0]).max(-1) > 20
    edges = np.flatnonzero(np.diff(colored.any(0), prepend=False, append=False))
    seen = []
    for left, right in edges.reshape(-1, 2):
        spot = colored[:, left:right]
        rows = np.flatnonzero(spot.any(1))
        color = np.median(pixels[:, left:right][spot], axis=0)
        seen.append((left, right, rows[0], rows[-1] + 1, spot.sum(), color))
    assert len(seen) == 3
    return seen


@pytest.mark.parametrize("size", [96, 128, 224])
def test_pictures_show_the_scene(size):
    margin = size // 16  # what a center crop cuts off
    for i in range(60):
        things = numbered_scene(i * 4001 % N_SCENES)
        image = draw_scene(things, np.random.default_rng(i), size)
        assert image.size == (size, size) and image.mode == "RGB"
        seen = things_seen(image)
        for thing, (left, right, top, bottom, _, color), column in zip(things, seen, range(3)):
            assert left >= margin - 1 and right <= size - margin + 1
            assert top >= margin and bottom <= size - margin
            assert column / 3 <= ((left + right) / 2 - margin) / (size - 2 * margin) <= (column + 1) / 3
            nearest = min(COLOR_WORDS, key=lambda name: np.abs(color - RGB[name]).sum())
            assert nearest == thing.color
        assert all(max(s[1] - s[0], s[3] - s[2]) >= 0.16 * size for s in seen)


def test_shapes_differ_in_how_they_fill_their_box():
    fills = {}
    for shape in SHAPE_WORDS:
        things = next(
            s for s in map(numbered_scene, range(0, N_SCENES, 13)) if s[1].shape == shape and s[1].size == "最大"
        )
        _, (left, right, top, bottom, pixels, _), _ = things_seen(draw_scene(things, np.random.default_rng(0), 512))
        fills[shape] = pixels / ((right - left) * (bottom - top))
    assert fills["方形"] > 0.98
    assert fills["圆形"] == pytest.approx(np.pi / 4, abs=0.02)
    assert fills["三角形"] == pytest.approx(0.5, abs=0.02)
    assert 0.25 < fills["星形"] < 0.4


def test_the_same_generator_draws_the_same_picture():
    first, same, other = (
        draw_scene(numbered_scene(5), np.random.default_rng(seed), 64).tobytes() for seed in (1, 1, 2)
    )
    assert first == same != other


def test_sizes_stay_apart_when_they_stray():
    assert RADII["最大"] * 0.96 > RADII["中等"] * 1.04 and RADII["中等"] * 0.96 > RADII["最小"] * 1.04
