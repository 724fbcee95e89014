"""The run's log: rank 0 to stderr and RUN/log.txt, warnings of each other rank to a file of its own."""

import logging
import sys
from io import TextIOWrapper
from pathlib import Path

from cromic_ds.run_folder import RunFolder

FILE_ONLY = "cromic_file_only"  # attribute of log records that the terminal does not show, because a bar is there
_OURS = ("cromic_ds", "__main__")
_SELF_PRINTING = ("DeepSpeed", "transformers")  # have handlers of their own and pass nothing on to the root logger
_NOISY = (*_SELF_PRINTING, "torch")  # log details at INFO that only their developers need
_step: int | None = None
_installed: list[tuple[logging.Logger, logging.Handler]] = []


def setup_logging(run_folder: Path | None, rank: int = 0, world_size: int = 1, hostname: str = "") -> None:
    """Set up the standard `logging` of this process, in place of an earlier set-up; Python's warnings are logged as well.

    Rank 0 writes our messages from INFO and everybody's from WARNING to stderr and appends them to RUN/log.txt. The other ranks
    write WARNING and above to RUN/logs/rank-00001.txt, which is created with its first line. Without a run folder, rank 0
    writes only to stderr and the other ranks write nothing.
    """
    at_step(None)
    remove_handlers()
    who = f"rank {rank}/{world_size} {hostname}".rstrip()
    handlers: list[logging.Handler] = [_StderrHandler()] if rank == 0 else []
    if run_folder is not None:
        folder = RunFolder(run_folder)
        path = folder.log if rank == 0 else folder.rank_log(rank)
        handlers.append(_RunFileHandler(path, encoding="utf-8", delay=True))
        for name in _SELF_PRINTING:
            _install(logging.getLogger(name), handlers[-1])
    if not handlers:
        handlers.append(logging.NullHandler())  # without any handler, Python would print every rank's warnings
    for handler in handlers:
        handler.setFormatter(_StepFormatter(who))
        handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        handler.addFilter(_is_ours_or_warning)
        _install(logging.getLogger(), handler)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for noisy in map(logging.getLogger, _NOISY):
        noisy.setLevel(logging.WARNING)
        noisy.addFilter(_is_warning)  # stays if the library sets its level on a later import, as DeepSpeed does
    logging.captureWarnings(True)


def at_step(step: int | None) -> None:
    """Set the number of finished steps that log lines show from now on; None shows none."""
    global _step
    _step = step


def remove_handlers() -> None:
    """Remove what `setup_logging` installed."""
    for owner, handler in _installed:
        owner.removeHandler(handler)
        handler.close()
    _installed.clear()


def _install(owner: logging.Logger, handler: logging.Handler) -> None:
    owner.addHandler(handler)
    _installed.append((owner, handler))


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _is_ours_or_warning(record: logging.LogRecord) -> bool:
    return _is_warning(record) or record.name.split(".")[0] in _OURS


class _StepFormatter(logging.Formatter):
    def __init__(self, who: str):
        super().__init__("%(asctime)s", "%Y-%m-%d %H:%M:%S")  # this format makes logging set `asctime`
        self._who = who

    def formatMessage(self, record: logging.LogRecord) -> str:
        at = "" if _step is None else f" step {_step}"
        return f"{record.asctime} {record.levelname} [{self._who}{at}] {record.message}"


class _StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at that moment: a progress bar replaces it to print lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not getattr(record, FILE_ONLY, False):
                print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # logging's rule: a message that cannot be written must not stop the program
            self.handleError(record)


class _RunFileHandler(logging.FileHandler):
    """Appends to a file that is created, with its folder, when the first line is written."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # the run itself reports a full disk
            super().handleError(record)

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()
