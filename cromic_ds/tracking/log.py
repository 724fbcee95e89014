"""The run's log: rank 0 to stderr and RUN/log.txt, the other ranks' warnings to a file each."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

FILE_ONLY = "cromic_file_only"  # attribute of a log record that the terminal does not show (a progress bar is there)
_OURS = ("cromic_ds", "__main__")
_SELF_PRINTING = ("DeepSpeed", "transformers")  # print by handlers of their own and pass nothing on to the root logger
_step: int | None = None
_NOISY = (*_SELF_PRINTING, "torch")  # tell their inner workings at INFO


def setup_logging(run_folder: Path | None, rank: int = 0, world_size: int = 1, hostname: str = "") -> None:
    """Sets up the standard `logging` of this process; calling it again replaces what the call before set up.

    Rank 0: our messages from INFO, everybody's from WARNING, to stderr and, appended, to RUN/log.txt.
    Other ranks: WARNING and above to RUN/logs/rank-00001.txt, which is made with its first line.
    Every line has time, level, rank, host and, in training, the steps done. Python's warnings go the same way. Without a run
    folder: stderr alone.
    """
    at_step(None)
    root = logging.getLogger()
    for owner in (root, *map(logging.getLogger, _SELF_PRINTING)):
        _remove_ours(owner)
    who = f"rank {rank}/{world_size}" + (f" {hostname}" if hostname else "")
    formatter = logging.Formatter(f"%(asctime)s %(levelname)s [{who}%(at)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S")

    handlers: list[logging.Handler] = []
    if rank == 0:
        handlers.append(_StderrHandler())
    if run_folder is not None:
        path = run_folder / ("log.txt" if rank == 0 else f"logs/rank-{rank:05d}.txt")
        handlers.append(_RunFileHandler(path))
    if not handlers:
        handlers.append(logging.NullHandler())  # without any, Python's last resort would print every rank's warnings
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        handler.addFilter(_ours_or_warning)
        handler.addFilter(_add_step)
        handler.cromic_ds = True
        root.addHandler(handler)
        if isinstance(handler, _RunFileHandler):
            for name in _SELF_PRINTING:
                logging.getLogger(name).addHandler(handler)

    logging.getLogger("cromic_ds").setLevel(logging.INFO)
    logging.getLogger("__main__").setLevel(logging.INFO)
    for name in _NOISY:
        noisy = logging.getLogger(name)
        noisy.setLevel(logging.WARNING)
        noisy.addFilter(_warning)  # holds where the library sets its level itself on a later import, as DeepSpeed does
    logging.captureWarnings(True)


def at_step(step: int | None) -> None:
    """Lines from now on say that so many steps are done."""
    global _step
    _step = step


def _add_step(record: logging.LogRecord) -> bool:
    record.at = "" if _step is None else f" step {_step}"
    return True


def _remove_ours(owner: logging.Logger) -> None:
    for handler in [h for h in owner.handlers if getattr(h, "cromic_ds", False)]:
        owner.removeHandler(handler)
        handler.close()


def _warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _ours_or_warning(record: logging.LogRecord) -> bool:
    return _warning(record) or record.name.split(".")[0] in _OURS


class _StderrHandler(logging.Handler):
    """Writes to whatever `sys.stderr` is at that moment, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, FILE_ONLY, False):
            return
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # logging's rule: a message that cannot be written must not stop the program
            self.handleError(record)


class _RunFileHandler(logging.FileHandler):
    """Appends to a file that comes into being, folder included, with its first line."""

    def __init__(self, path: Path):
        self._path = path
        super().__init__(path, mode="a", encoding="utf-8", delay=True)

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # of a full disk the run itself will tell
            super().handleError(record)

    def _open(self):
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return super()._open()
