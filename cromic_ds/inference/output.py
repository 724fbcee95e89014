"""The files that commands write."""

import os
from pathlib import Path

from cromic_ds.errors import UserError


def output_file(path: str) -> Path:
    """Make the folder of a file that will be written, before any work is done for it, and return the file.

    Raises UserError if the folder cannot be made or written to, or the path is a folder.
    """
    out = Path(path)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: cannot be written (no permission for the folder)")
    return out
