"""Pictures: what preparation checks and re-encodes, and what training decodes and crops."""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""More than this is called a decompression bomb: decoded, it would take 256 MB."""

MAX_ELONGATION = 50
"""Longest side over shortest side. JPEG ends at 65,535 pixels, and a center crop of such a strip shows nothing."""

# What is left for the antialiased resize where a JPEG is decoded at 1/2, 1/4 or 1/8. The pixels then differ by 0.7 of 255
# in the mean from those of a whole decoding, less than half of what the JPEG that is stored differs from them (1.8).
_MARGIN = 1.5

# Only formats that Pillow decodes by itself. EPS, for one, would start Ghostscript on a stranger's file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

NOT_AN_IMAGE = "not an image"
TRUNCATED = "truncated image"
BOMB = "decompression bomb (more than 64 Mpixel)"
ELONGATED = f"image is more than {MAX_ELONGATION} times as long as it is wide"


class BadImage(ValueError):
    """An image that cannot be used; the text is the reason, one of this module's constants."""


def training_image(encoded: bytes, size: int) -> np.ndarray:
    """The center square that training sees: (size, size, 3) uint8 RGB.

    Shorter side to round(size · 256/224), bilinear and antialiased as Pillow does it, then a center crop. Stored
    images already have that side at size 224, so they are only decoded. Raises BadImage.
    """
    pixels = decode(encoded)
    height, width = pixels.shape[:2]
    short_side = round(size * 256 / 224)
    scaled_height, scaled_width = _scaled(height, width, short_side)
    top, left = round((scaled_height - size) / 2), round((scaled_width - size) / 2)
    if (scaled_height, scaled_width) == (height, width):
        return np.ascontiguousarray(pixels[top : top + size, left : left + size])
    # Resizing only what the crop keeps gives the same pixels as resizing all of it.
    y, x = height / scaled_height, width / scaled_width
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=box))


def reencode(encoded: bytes, short_side: int, quality: int) -> bytes:
    """A baseline RGB JPEG with the shorter side at `short_side` pixels, from bytes in any common format.

    Checks everything first: the size is read from the header before a pixel is decoded. Rotation tags are applied,
    transparency becomes white. A JPEG that already has the right side is kept byte for byte, so preparing twice loses
    nothing. Raises BadImage.
    """
    image = _open(encoded)
    upright_jpeg = image.format == "JPEG" and image.mode == "RGB" and not _is_rotated(image)
    right = upright_jpeg and min(image.size) == short_side and not image.info.get("progressive")
    if right and _decodes_cleanly(encoded):
        return encoded
    try:
        pixels = _reduced(encoded, round(_MARGIN * short_side)) if upright_jpeg else None
        if pixels is None:
            image.draft("RGB", (round(_MARGIN * short_side),) * 2)
            image.load()
            pixels = np.array(_upright_rgb(image))
    except Exception as error:  # each decoder has its own way to fail on damaged bytes
        raise BadImage(TRUNCATED) from error
    height, width = _scaled(*pixels.shape[:2], short_side)
    return simplejpeg.encode_jpeg(_resize(pixels, height, width), quality=quality, colorsubsampling="420")


def _reduced(jpeg: bytes, short_side: int) -> np.ndarray | None:
    """The pixels, at 1/2, 1/4 or 1/8 where that leaves `short_side`: enough for the antialiased resize that follows.

    Color, of which the JPEG mostly has a quarter of the pixels, is not interpolated: the resize does that. None where
    the decoder complains, which is not always reason enough to refuse the image.
    """
    try:
        return simplejpeg.decode_jpeg(
            jpeg, min_height=short_side, min_width=short_side, min_factor=2, fastupsample=True
        )
    except ValueError:
        return None


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear and antialiased as by Pillow, within 1 of 255. It takes Pillow longer than decoding, torch a fifth of that."""
    import torch
    from torch.nn.functional import interpolate

    channels_last = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = interpolate(channels_last, (height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _open(encoded: bytes) -> Image.Image:
    """The image with its header read and its pixels not yet decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower and checked below
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(BOMB) from error
    except Exception as error:  # header parsers raise whatever a damaged field leads to
        # Bytes that begin like an image but end within the header are a cut file, not another kind of file.
        raise BadImage(TRUNCATED if _begins_like_an_image(encoded) else NOT_AN_IMAGE) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(BOMB)
    if max(image.size) > MAX_ELONGATION * min(image.size):
        raise BadImage(ELONGATED)
    return image


def _begins_like_an_image(encoded: bytes) -> bool:
    return encoded.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")) or (
        encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP"
    )


def decode(encoded: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB. libjpeg-turbo straight from the bytes; Pillow for whatever is not a plain JPEG."""
    try:
        height, width = simplejpeg.decode_jpeg_header(encoded)[:2]
        if height * width <= MAX_PIXELS:
            return simplejpeg.decode_jpeg(encoded)
    except ValueError:
        pass  # another format, CMYK, or damaged: Pillow can tell
    image = _open(encoded)
    try:
        image.load()
        return np.asarray(_upright_rgb(image))
    except Exception as error:  # each decoder has its own way to fail on damaged bytes
        raise BadImage(TRUNCATED) from error


def _decodes_cleanly(jpeg: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(jpeg)
    except ValueError:
        return False
    return True


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Turned as its tag says, on white, RGB; without a copy where it is that already (a copy costs more than decoding)."""
    if _is_rotated(image):
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_rotated(image: Image.Image) -> bool:
    orientation = 0x0112
    return image.getexif().get(orientation, 1) != 1


def _scaled(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with the shorter one at `short_side`, the longer one rounded down as by torchvision's Resize."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side
