"""Fields of the entries of official files, checked. BadEntry says why an entry cannot be used."""

from typing import Any

from cromic_ds.data.record import MAX_KEY_BYTES
from cromic_ds.data.sources import EXTENSIONS


class BadEntry(ValueError):
    """An entry that cannot be used; the text is the reason."""


def text_field(item: dict[str, Any], key: str) -> str:
    """Return the text under `key` without surrounding whitespace."""
    return clean_text(item.get(key), key)


def clean_text(value: Any, name: str) -> str:
    """Return a text without surrounding whitespace. Raises BadEntry for anything but a text, and for an empty one."""
    if not (text := unicode_text(value, name).strip()):
        raise BadEntry(f"empty {name}")
    return text


def unicode_text(value: Any, name: str) -> str:
    """Return a text as it is. Raises BadEntry for anything else, and for half a surrogate pair, which JSON can hold."""
    if not isinstance(value, str):
        raise BadEntry(f"no {name}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadEntry(f"{name} is not valid Unicode") from None
    return value


def id_field(item: dict[str, Any], key: str) -> str:
    """Return the id under `key`, a whole number or a text."""
    value = item.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    id = clean_text(value, key)
    if len(id.encode()) > MAX_KEY_BYTES:
        raise BadEntry(f"{key} is too long")
    return id


def caption_list(value: Any, count: int) -> list[str]:
    """Return the captions of an image, of which there must be `count`, without the empty ones."""
    if not isinstance(value, list):
        raise BadEntry("no captions")
    if len(value) != count:
        raise BadEntry(f"{len(value)} captions instead of {count}")
    captions = [clean_text(text, "caption") for text in value if not (isinstance(text, str) and not text.strip())]
    if not captions:
        raise BadEntry("empty captions")
    return captions


def without_extension(name: str) -> str:
    """Return the name of an image file without its extension."""
    return next((name.removesuffix(extension) for extension in EXTENSIONS if name.endswith(extension)), name)


def any_id(item: Any) -> str:
    """Return an id that helps to find an unusable entry, or an empty string."""
    if isinstance(item, dict):
        for key in ("question_id", "image_id", "id"):
            if isinstance(item.get(key), int | str):
                return str(item[key])[:100].encode(errors="replace").decode()
    return ""
