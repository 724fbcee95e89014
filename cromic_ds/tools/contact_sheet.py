"""A sheet of pictures with their texts: a PNG if a font with Chinese characters is found, else an HTML page.

Neither Pillow nor matplotlib ships such a font. A browser that shows an HTML page uses the fonts of the reader's machine.
"""

import base64
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from cromic_ds.data.images import decode
from cromic_ds.files import replacing, write_atomically

COLUMNS = 4
PICTURE = 224  # pixels of a picture's side
MARGIN = 12
FONT_SIZE = 15
LINE = 20

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CHINESE = "的图评论"
# Beginnings of file names, tried in this order; then any other font that has the characters.
_PREFERRED = (
    *("notosanscjk", "notosanssc", "sourcehansans", "pingfang", "msyh", "wqy", "simhei", "stheiti"),
    "droidsansfallback",
)


@dataclass
class SheetEntry:
    """One post on the sheet."""

    id: str
    image: bytes
    post: str
    comments: list[str]
    token_ids: list[str]  # of the post and of each comment; shown if no font has the text's characters


def find_font(folders: list[str] | None = None) -> Path | None:
    """Return a font file with Chinese characters in `folders`, by default in the system's font folders."""
    from matplotlib import font_manager

    found = [Path(path) for path in font_manager.findSystemFonts(folders)]
    return next(filter(has_chinese, sorted(found, key=lambda path: (_preference(path), str(path)))), None)


def has_chinese(font: Path) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(str(font), FONT_SIZE)  # which draws with it
        face = FT2Font(str(font))
        return all(face.get_char_index(ord(c)) for c in _CHINESE)
    except (RuntimeError, OSError):  # not a font, or one that FreeType does not read
        return False


def draw_png(entries: list[SheetEntry], font_file: Path | None, out: Path) -> None:
    """Write the sheet as PNG; without a font it shows token ids instead of the text."""
    font = ImageFont.truetype(str(font_file), FONT_SIZE) if font_file else ImageFont.load_default(FONT_SIZE)
    texts = [_lines(entry, font, has_font=font_file is not None) for entry in entries]
    cell_width = PICTURE + 2 * MARGIN
    rows = [texts[start : start + COLUMNS] for start in range(0, len(texts), COLUMNS)]
    heights = [PICTURE + max(map(len, row)) * LINE + 2 * MARGIN for row in rows]
    sheet = Image.new("RGB", (min(COLUMNS, len(entries)) * cell_width, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (entry, lines) in enumerate(zip(entries, texts)):
        row, column = divmod(i, COLUMNS)
        left, top = column * cell_width + MARGIN, sum(heights[:row]) + MARGIN
        picture = _thumbnail(entry.image)
        sheet.paste(picture, (left + (PICTURE - picture.width) // 2, top + (PICTURE - picture.height) // 2))
        for number, (line, color) in enumerate(lines):
            draw.text((left, top + PICTURE + number * LINE), line, fill=color, font=font)
    with replacing(out, "wb") as file:
        sheet.save(file, "PNG")


def write_html(entries: list[SheetEntry], out: Path) -> None:
    """Write the sheet as one HTML file that contains its pictures."""
    cells = []
    for entry in entries:
        file = io.BytesIO()
        _thumbnail(entry.image).save(file, "JPEG", quality=90)
        picture = f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}" alt="">'
        comments = "".join(f"<li>{html.escape(comment)}</li>" for comment in entry.comments)
        texts = f"<small>{html.escape(entry.id)}</small><p>{html.escape(entry.post)}</p><ul>{comments}</ul>"
        cells.append(f"<article>{picture}{texts}</article>")
    style = (
        f"main{{display:grid;grid-template-columns:repeat(auto-fill,{PICTURE}px);gap:2em;font-family:sans-serif}}"
        "small{display:block;color:#888}p{font-weight:bold}ul{padding-left:1.2em}"
    )
    page = f'<!doctype html><html lang="zh"><meta charset="utf-8"><style>{style}</style><main>{"".join(cells)}</main></html>\n'
    write_atomically(out, page)


def _preference(font: Path) -> int:
    name = font.name.lower().replace("-", "").replace("_", "")
    return next((rank for rank, known in enumerate(_PREFERRED) if name.startswith(known)), len(_PREFERRED))


def _thumbnail(encoded: bytes) -> Image.Image:
    picture = Image.fromarray(decode(encoded))
    picture.thumbnail((PICTURE, PICTURE))
    return picture


def _lines(entry: SheetEntry, font: Font, has_font: bool) -> list[tuple[str, str]]:
    """Return the text below a picture as (line, color)."""
    post, *comments = [entry.post, *entry.comments] if has_font else entry.token_ids
    texts = [(entry.id, "gray"), (post, "black"), *((f"· {comment}", "darkblue") for comment in comments)]
    return [(line, color) for text, color in texts for line in _wrap(text, font)]


def _wrap(text: str, font: Font) -> list[str]:
    """Break a text into lines no wider than a picture: Latin text between words, Chinese text between any two characters."""
    lines = [""]
    for piece in re.findall(r"[!-~]{1,24}|\s|[^!-~\s]", text):
        if lines[-1] and font.getlength(lines[-1] + piece) > PICTURE:
            lines.append("")
        lines[-1] += piece if lines[-1] or not piece.isspace() else ""
    return lines
