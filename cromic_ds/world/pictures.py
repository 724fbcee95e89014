"""Draws scenes as pictures."""

import io
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from cromic_ds.world.scenes import PLACE_WORDS, Scene

RGB = {
    "红色": (220, 35, 35),
    "橙色": (250, 140, 20),
    "黄色": (245, 220, 40),
    "绿色": (45, 165, 65),
    "蓝色": (40, 90, 220),
    "紫色": (135, 50, 175),
    "粉色": (250, 150, 195),
    "黑色": (30, 30, 30),
}
# All lengths are fractions of the picture's side. The central 7/8, which a center crop keeps, is divided into three columns of
# 0.29. A thing of the biggest size is 0.25 wide and is placed up to 0.015 to either side of its column's center. Smaller things
# would need a finer image encoder than that of preset tiny, which divides the crop into 4×4 cells.
COLUMN = 7 / 8 / 3
RADII = {"最大": 0.125, "中等": 0.115, "最小": 0.105}
STRAY_X, STRAY_Y, STRAY_RADIUS, STRAY_RGB = 0.015, 0.1, 0.04, 12
SUPERSAMPLE = 4
JPEG_QUALITY = 90


def _polygon(corners: int, first: float = -pi / 2) -> list[tuple[float, float]]:
    return [(cos(first + 2 * pi * k / corners), sin(first + 2 * pi * k / corners)) for k in range(corners)]


OUTLINES = {  # around (0, 0), y downwards, with a radius of about 1
    "圆形": _polygon(64),
    "方形": [(x * 2**0.5 * 0.88, y * 2**0.5 * 0.88) for x, y in _polygon(4, pi / 4)],
    "三角形": [(x * 1.15, y * 1.15 + 0.2) for x, y in _polygon(3)],
    "星形": [(x * r, y * r) for (x, y), r in zip(_polygon(10), (1.1, 0.46) * 5)],
}


def draw_scene(scene: Scene, rng: np.random.Generator, size: int) -> Image.Image:
    """Return a `size`×`size` RGB picture of the scene on a light tint; places, sizes and colors vary a little with `rng`."""
    canvas = size * SUPERSAMPLE
    image = Image.new("RGB", (canvas, canvas), tuple(rng.integers(228, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for thing in scene:
        x = 0.5 + (PLACE_WORDS.index(thing.place) - 1) * COLUMN + rng.uniform(-STRAY_X, STRAY_X)
        y = 0.5 + rng.uniform(-STRAY_Y, STRAY_Y)
        radius = RADII[thing.size] * (1 + rng.uniform(-STRAY_RADIUS, STRAY_RADIUS))
        color = np.clip(np.array(RGB[thing.color]) + rng.integers(-STRAY_RGB, STRAY_RGB + 1, 3), 0, 255)
        outline = [((x + dx * radius) * canvas, (y + dy * radius) * canvas) for dx, dy in OUTLINES[thing.shape]]
        pen.polygon(outline, fill=tuple(color.tolist()))
    return image.reduce(SUPERSAMPLE)


def draw_jpeg(scene: Scene, rng: np.random.Generator, size: int) -> bytes:
    """Return the picture of `draw_scene` as a JPEG."""
    jpeg = io.BytesIO()
    draw_scene(scene, rng, size).save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return jpeg.getvalue()
