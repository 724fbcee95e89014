"""Read-only LMDB environments, opened lazily and once per process.

LMDB refuses to open an environment twice in a process, and a handle must not cross a fork. So all readers share one cache,
which a forked process empties. It is bounded, because a corpus of many thousand shards would run
out of file descriptors. LMDB maps its file into memory: reading beyond the end of a truncated file would end the process with a
bus error. So each access checks the file's size first.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import lmdb

from cromic_ds.errors import UserError

MAX_OPEN = 128
DATA = "data.mdb"


# With each environment the mapped file, even if another one has taken its name since, and its bytes up to the last page in use.
_open: OrderedDict[str, tuple[lmdb.Environment, BinaryIO, int]] = OrderedDict()
os.register_at_fork(after_in_child=_open.clear)
_real_path = lru_cache(maxsize=4096)(os.path.realpath)  # asks the file system about each folder on the way


def open_environment(path: str | Path, before_opening: Callable[[], None] = lambda: None) -> lmdb.Environment:
    """Return the environment in the LMDB folder `path`, without locks or read-ahead. Do not keep it: call this for each access.

    `before_opening` is called if it is not open yet. Raises UserError if it is no LMDB environment, or truncated.
    """
    key = str(_real_path(str(path)))
    if key in _open:
        _open.move_to_end(key)
    else:
        before_opening()
        while len(_open) >= MAX_OPEN:
            _open.popitem(last=False)
        try:
            found = lmdb.open(key, readonly=True, lock=False, readahead=False)
            size = (found.info()["last_pgno"] + 1) * found.stat()["psize"]
            _open[key] = (found, Path(key, DATA).open("rb"), size)  # noqa: SIM115 - closed with its entry
        except (lmdb.Error, OSError) as error:
            raise UserError(f"{path}: cannot be opened as an LMDB environment ({error})") from None
    environment, file, size = _open[key]
    if (there := os.fstat(file.fileno()).st_size) < size:
        raise UserError(f"{path}: {DATA} has {there} of its {size} bytes: it was cut off")
    return environment
