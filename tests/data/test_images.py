import io
import struct
import warnings
import zlib

import lmdb
import numpy as np
import pytest
from PIL import Image

from cromic_ds.data.images import BOMB, ELONGATED, NOT_AN_IMAGE, TRUNCATED, BadImage, reencode, training_image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def picture(width: int, height: int) -> Image.Image:
    """Return smooth waves with some noise, similar to a photograph."""
    y, x = np.mgrid[:height, :width]
    channels = [127 + 100 * np.sin((9 - 2 * c) * x / width + (5 + 3 * c) * y / height) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(channels, 2) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pillow_way(jpeg: bytes, size: int) -> np.ndarray:
    """Resize the whole image, then crop it: the definition that `training_image` must match."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    side = round(size * 256 / 224)
    short, long = min(image.size), max(image.size)
    scaled = (side, int(side * long / short)) if image.width <= image.height else (int(side * long / short), side)
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("shape", [(256, 256), (341, 256), (256, 455), (640, 427), (100, 130)])
@pytest.mark.parametrize("size", [224, 64])
def test_same_pixels_as_pillow(shape, size):
    jpeg = encoded(picture(*shape), quality=90)
    pixels = training_image(jpeg, size)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8 and pixels.flags["C_CONTIGUOUS"]
    assert np.abs(pixels.astype(int) - pillow_way(jpeg, size)).max() <= 2


def test_golden_pixels(shared):
    golden = np.load(shared / "golden" / "cmt_reference.npz")
    with lmdb.open(str(shared / "seed_data" / "example_image_lmdb"), readonly=True, lock=False).begin() as txn:
        jpegs = [txn.get(str(id).encode()) for id in golden["ids"]]
    normalized = [(training_image(jpeg, 224) / np.float32(255) - MEAN) / STD for jpeg in jpegs]
    tolerance = 2 / 255 / STD.min()
    for pixels, (mean, std) in zip(normalized, golden["image_mean_std"]):
        assert pixels.mean() == pytest.approx(mean, abs=1e-4)
        assert pixels.std(ddof=1) == pytest.approx(std, abs=1e-4)
    patch = normalized[0].transpose(2, 0, 1)[:, 100:104, 100:104]
    assert np.abs(patch - golden["image0_patch"]).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_kinds_of_jpeg_can_be_trained_on(mode):
    jpeg = encoded(picture(300, 256).convert(mode))
    assert np.abs(training_image(jpeg, 224).astype(int) - pillow_way(jpeg, 224)).max() <= 2


@pytest.mark.parametrize("shape", [(640, 480), (480, 640), (100, 150), (1200, 800)])
def test_reencoded_short_side_and_content(shape):
    original = picture(*shape)
    result = Image.open(io.BytesIO(reencode(encoded(original, "PNG"), 256, 90)))
    long = int(256 * max(shape) / min(shape))
    assert result.size == ((long, 256) if shape[0] > shape[1] else (256, long))
    assert (result.format, result.mode) == ("JPEG", "RGB")
    difference = np.asarray(result, int) - np.asarray(original.resize(result.size, Image.Resampling.BILINEAR), int)
    assert np.abs(difference).mean() < 5


def test_large_jpeg_keeps_its_content():
    original = picture(2400, 1600)
    result = Image.open(io.BytesIO(reencode(encoded(original, quality=95), 256, 95)))
    expected = original.resize(result.size, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(result, int) - np.asarray(expected, int)).mean() < 4


def test_what_is_right_already_stays_byte_for_byte():
    jpeg = encoded(picture(341, 256), quality=75)
    assert reencode(jpeg, 256, 90) is jpeg
    assert reencode(reencode(jpeg, 128, 90), 128, 90) == reencode(jpeg, 128, 90)
    progressive = encoded(picture(341, 256), progressive=True)
    assert reencode(progressive, 256, 90) != progressive


def test_rotation_tag_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    result = Image.open(io.BytesIO(reencode(encoded(picture(512, 256), exif=exif), 256, 90)))
    assert result.size == (256, 512)


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    pixels = np.asarray(Image.open(io.BytesIO(reencode(encoded(clear, "PNG"), 64, 90))))
    assert pixels.min() >= 254


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 8,001 by 8,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8001, 8000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def jpeg_bomb() -> bytes:
    """A JPEG whose header says 65,000 by 65,000 pixels; Pillow itself refuses to open that."""
    jpeg = bytearray(encoded(picture(64, 64)))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65000, 65000)
    return bytes(jpeg)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", NOT_AN_IMAGE, id="empty"),
        pytest.param(b"<html>404</html>", NOT_AN_IMAGE, id="html"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NOT_AN_IMAGE, id="postscript"),
        pytest.param(encoded(picture(400, 300))[:6000], TRUNCATED, id="jpeg"),
        pytest.param(encoded(picture(341, 256))[:6000], TRUNCATED, id="jpeg of the right side"),
        pytest.param(encoded(picture(400, 300))[:100], TRUNCATED, id="jpeg header"),
        pytest.param(encoded(picture(400, 300), "PNG")[:6000], TRUNCATED, id="png"),
        pytest.param(encoded(picture(400, 300), "PNG")[:20], TRUNCATED, id="png header"),
        pytest.param(bomb(), BOMB, id="png bomb"),
        pytest.param(jpeg_bomb(), BOMB, id="jpeg bomb"),
        pytest.param(encoded(Image.new("RGB", (20, 1020))), ELONGATED, id="strip"),
    ],
)
def test_bad_images_are_refused(content, reason):
    with pytest.raises(BadImage) as error:
        reencode(content, 256, 90)
    assert str(error.value) == reason


def test_training_refuses_what_preparation_refuses():
    for content in (b"no image", jpeg_bomb(), bomb(), encoded(picture(341, 256))[:6000]):
        with pytest.raises(BadImage):
            training_image(content, 224)


def test_decoding_makes_no_warning_of_others_appear_again():
    """Python shows a warning once for each place, and forgets where it has shown it when anybody changes the filters."""
    image = encoded(picture(40, 30), "PNG")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("of somebody else", stacklevel=1)
            training_image(image, 16)
    assert len(shown) == 1
