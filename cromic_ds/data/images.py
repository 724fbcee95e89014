"""Images: checked and re-encoded in preparation, decoded and cropped in training."""

import io
import warnings
from contextlib import suppress

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

# `_open` checks a lower limit. Set once, because every change of the filters makes Python show all warnings again.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# An image with more pixels is rejected as a decompression bomb: decoded, Pillow would need 256 MB for it.
MAX_PIXELS = 64_000_000
# Highest ratio of the longer to the shorter side. A JPEG has at most 65,535 pixels a side; a crop of a strip shows nothing.
MAX_ELONGATION = 50

# A JPEG is decoded at 1/2, 1/4 or 1/8 only if its shorter side then still has this many times the wanted pixels. The result
# differs from a resize of the whole image by 0.7 of 255 on average; storing it as a JPEG changes it by 1.8.
_MARGIN = 1.5

# Only formats that Pillow decodes by itself. EPS, for example, would run Ghostscript on untrusted files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

NOT_AN_IMAGE = "not an image"
TRUNCATED = "truncated image"
BOMB = "decompression bomb (more than 64 Mpixel)"
ELONGATED = f"image is more than {MAX_ELONGATION} times as long as it is wide"


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason, as `rejects.jsonl` says it."""


def training_image(encoded: bytes, size: int) -> np.ndarray:
    """Return the center crop for training, (size, size, 3) uint8 RGB.

    The shorter side is resized to round(size · 256/224), bilinear and antialiased as by Pillow, and then the center is
    cropped. Stored images already have that side for size 224, so they are only decoded. Raises BadImage.
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
    """Return an image in any common format as a baseline RGB JPEG whose shorter side has `short_side` pixels.

    The size is checked in the header before any pixel is decoded. Rotation tags are applied, and transparency becomes
    white. A JPEG that already has the right size is kept byte for byte, so preparing twice loses nothing. Raises BadImage.
    """
    image = _open(encoded)
    upright_jpeg = image.format == "JPEG" and image.mode == "RGB" and not _is_rotated(image)
    if upright_jpeg and min(image.size) == short_side and not image.info.get("progressive"):
        with suppress(ValueError):
            simplejpeg.decode_jpeg(encoded)
            return encoded
    reduced = round(_MARGIN * short_side)
    try:
        pixels = _reduced(encoded, reduced) if upright_jpeg else None
        if pixels is None:
            image.draft("RGB", (reduced, reduced))
            pixels = _upright_rgb(image)
    except Exception as error:  # each decoder raises its own exceptions for damaged bytes
        raise BadImage(TRUNCATED) from error
    height, width = _scaled(pixels.shape[0], pixels.shape[1], short_side)
    return simplejpeg.encode_jpeg(_resize(pixels, height, width), quality=quality, colorsubsampling="420")


def _reduced(jpeg: bytes, short_side: int) -> np.ndarray | None:
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size where that leaves at least `short_side` pixels for the resize.

    Color, which most JPEGs hold at a quarter of the pixels, is not interpolated, because the resize does that. None where
    the decoder complains: Pillow may still be able to read the image.
    """
    try:
        return simplejpeg.decode_jpeg(
            jpeg, min_height=short_side, min_width=short_side, min_factor=2, fastupsample=True
        )
    except ValueError:
        return None


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize bilinearly with antialiasing, within 1 of 255 of Pillow. Torch takes a fifth of Pillow's time."""
    import torch
    from torch.nn.functional import interpolate

    channels_last = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = interpolate(channels_last, (height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _open(encoded: bytes) -> Image.Image:
    """Read the header of an image and check its size; the pixels are not decoded yet."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(BOMB) from error
    except Exception as error:  # header parsers raise many kinds of exceptions for damaged fields
        # Bytes that begin like an image but end within the header are a truncated image, not another kind of file.
        webp = encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP"
        image_bytes = webp or encoded.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))
        raise BadImage(TRUNCATED if image_bytes else NOT_AN_IMAGE) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(BOMB)
    if max(image.size) > MAX_ELONGATION * min(image.size):
        raise BadImage(ELONGATED)
    return image


def decode(encoded: bytes) -> np.ndarray:
    """Return the pixels, (H, W, 3) uint8 RGB; plain JPEGs by libjpeg-turbo, all other images by Pillow. Raises BadImage."""
    try:
        height, width = map(int, simplejpeg.decode_jpeg_header(encoded)[:2])
        if height * width <= MAX_PIXELS:
            return simplejpeg.decode_jpeg(encoded)
    except ValueError:
        pass  # another format, CMYK or damaged: Pillow finds out
    return _upright_rgb(_open(encoded))


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """Decode an image, apply the rotation tag and convert to RGB on white. Where nothing is to be converted, nothing is copied
    before the result, because a copy costs more than decoding.
    """
    try:
        image.load()
        if _is_rotated(image):
            image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # each decoder raises its own exceptions for damaged bytes
        raise BadImage(TRUNCATED) from error


def _is_rotated(image: Image.Image) -> bool:
    return image.getexif().get(0x0112, 1) != 1  # the tag of the orientation


def _scaled(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width) with the shorter one at `short_side`, the longer one rounded down as by torchvision's Resize."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side
