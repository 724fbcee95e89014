"""What the charts of the tools have in common: colors, a figure, and how it is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cromic_ds.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
BLUE, OCHRE = "#2b6cb0", "#b7791f"


@contextmanager
def png_figure(path: Path, width: float, height: float, font_size: float) -> Iterator[Figure]:
    """Yield a figure (width and height in inches) that is written to the PNG file `path` when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": font_size, "text.color": INK, "axes.labelcolor": MUTED}):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure
        with replacing(path, "wb") as file:
            figure.savefig(file, format="png")


def remove_frame(axes: Axes) -> None:
    """Take away spines and tick marks, and draw the grid behind the data."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
