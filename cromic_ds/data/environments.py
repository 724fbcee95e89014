"""Read-only LMDB environments, opened lazily, once a process.

LMDB refuses to open an environment twice in a process, and a handle must not cross a fork. So all readers share one
cache, which forgets everything when it finds itself in another process. It holds a bounded number of environments,
because a corpus of many thousand shards would run out of file descriptors.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import lmdb

from cromic_ds.errors import UserError

MAX_OPEN = 128

_open: OrderedDict[str, lmdb.Environment] = OrderedDict()
_owner = os.getpid()
_real_path = lru_cache(maxsize=4096)(os.path.realpath)  # asks the file system about each folder on the way


def environment(path: str | Path) -> lmdb.Environment:
    """The LMDB folder `path`, opened without locks or read-ahead. Do not keep it: ask again for each access."""
    global _owner
    if _owner != os.getpid():
        _open.clear()
        _owner = os.getpid()
    key = _real_path(str(path))
    if key in _open:
        _open.move_to_end(key)
        return _open[key]
    while len(_open) >= MAX_OPEN:
        _open.popitem(last=False)
    try:
        _open[key] = lmdb.open(key, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise UserError(f"{path}: cannot be opened as an LMDB environment ({error})") from None
    return _open[key]


def forget(path: str | Path) -> None:
    """Let go of `path`, so that it can be replaced or removed."""
    _open.pop(_real_path(str(path)), None)
