"""Weights & Biases, kept at arm's length: whatever it does, the run neither stops nor waits."""

from __future__ import annotations

import contextlib
import io
import logging
import netrc
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from cromic_ds.tracking.jsonl import plain
from cromic_ds.tracking.tracker import SampleRow, Tracker

logger = logging.getLogger(__name__)

RUN_ID_FILE = "wandb_run_id"
_STOP = object()


class WandbTracker(Tracker):
    """Hands everything to one background thread, the only one that talks to W&B.

    The training loop puts a record into a queue and goes on: starting, logging, uploading and failing all happen in
    that thread. The first failure is logged, once; while the queue is full, records are dropped. metrics.jsonl has all.

    mode: "online", "offline", or "auto": online where a login is found (a key in the environment or in netrc), else
    offline; the environment's WANDB_MODE takes the place of "auto". Where online does not work, the run is recorded
    offline. Files lie in RUN/wandb (`wandb sync RUN/wandb/offline-run-*` uploads offline ones); a resumed run keeps the
    run id of RUN/wandb_run_id. Charts are drawn over our own `step`: W&B's cannot go back to a checkpoint's.
    """

    INIT_SECONDS = 60
    FINISH_SECONDS = 20  # a launcher may kill its processes 30 s after SIGTERM; `wandb sync` uploads the rest
    QUEUE_RECORDS = 10_000

    def __init__(
        self,
        mode: str,
        run_folder: Path,
        config: dict,
        *,
        project: str,
        entity: str = "",
        name: str = "",
        group: str = "",
        tags: list[str] | tuple[str, ...] = (),
    ):
        self._mode = mode
        self._folder = run_folder
        self._init = {
            "project": project,
            "entity": entity or None,
            "name": name or run_folder.resolve().name,
            "group": group or None,
            "tags": list(tags) or None,
            "config": config,
            "dir": str(run_folder),
            "resume": "allow",
        }
        self._run = None
        self._warned = False
        self._finished = False
        self._queue: queue.Queue = queue.Queue(self.QUEUE_RECORDS)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, float | int | str], kind: str) -> None:
        record = {"step": step, **{f"{kind}/{name}": plain(value) for name, value in values.items()}}
        self._put(lambda: self._run.log(record))

    def samples(self, step: int, rows: list[SampleRow]) -> None:
        self._put(lambda: self._run.log({"step": step, "samples": _table(rows)}))

    def finish(self) -> None:
        """Waits, at most FINISH_SECONDS, until W&B has what is queued; offline it only has to write a file."""
        if self._finished:
            return
        self._finished = True
        deadline = time.monotonic() + self.FINISH_SECONDS
        with contextlib.suppress(queue.Full):
            self._queue.put(_STOP, timeout=self.FINISH_SECONDS)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"did not finish within {self.FINISH_SECONDS} s")
            _kill_service()  # else the interpreter would wait for it at its exit
            self._thread.join(5)

    def _put(self, job: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self._warn(f"is too slow: {self.QUEUE_RECORDS} records are waiting")

    def _work(self) -> None:
        with self._harmless():
            self._run = self._start()
        while (job := self._queue.get()) is not _STOP:
            if self._run is not None:
                with self._harmless():
                    job()
        if self._run is not None:
            with self._harmless():
                self._run.finish()
        with self._harmless():
            _teardown()

    def _start(self):
        import wandb

        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):  # else its logs and the pictures to upload lie at home
            os.environ.setdefault(name, str((self._folder / "wandb").resolve()))
        (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_SILENT", "true")
        run_id = run_id_of(self._folder)
        mode = resolve_mode(self._mode)
        try:
            run = self._open(wandb, mode, run_id)
        except Exception as error:  # wandb documents no bound on what init raises
            if mode != "online":
                raise
            self._warn(f"cannot be reached and is recorded offline ({_one_line(error)})")
            mode = "offline"
            with contextlib.suppress(Exception):  # its service may be the trouble; a new one starts below
                _teardown()  # else it holds the run id as being in use
            run = self._open(wandb, mode, run_id)
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        where = run.url if mode == "online" else f"files in {run.dir}"
        logger.info("W&B: %s, run id %s, %s", mode, run_id, where)
        return run

    def _open(self, wandb, mode: str, run_id: str):
        limits = {"init_timeout": self.INIT_SECONDS, "login_timeout": 15, "finish_timeout": self.FINISH_SECONDS * 0.8}
        known = {name: value for name, value in limits.items() if name in wandb.Settings.model_fields}  # by version
        settings = wandb.Settings(console="off", silent=True, **known)
        return wandb.init(mode=mode, id=run_id, settings=settings, **self._init)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # W&B must never stop a run, whatever it raises
            self._warn(f"failed ({_one_line(error)})")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("W&B %s; the run goes on, and metrics.jsonl has every number", what)


def resolve_mode(mode: str) -> str:
    """The mode for `wandb.init`: "auto" decided, and "online" without a login made "offline".

    Left to itself, W&B would stop there and ask for a key on the terminal.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "auto")
    if mode not in ("auto", "online"):
        return mode
    if _logged_in():
        return "online"
    if mode == "online":
        logger.warning("W&B: no login was found (`wandb login`, or WANDB_API_KEY), so the run is recorded offline")
    return "offline"


def run_id_of(run_folder: Path) -> str:
    """The W&B id of this run folder, made and written down on first use."""
    path = run_folder / RUN_ID_FILE
    if path.exists() and (run_id := path.read_text().strip()):
        return run_id
    run_id = uuid.uuid4().hex[:8]
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(run_id + "\n")
    aside.replace(path)
    return run_id


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlsplit(wandb.setup().settings.base_url).hostname
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(place).expanduser() for place in places):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host):
                return True
    return False


def _table(rows: list[SampleRow]):
    import wandb
    from PIL import Image

    def picture(jpeg: bytes | None):
        return None if jpeg is None else wandb.Image(Image.open(io.BytesIO(jpeg)), file_type="jpg")

    table = wandb.Table(columns=["id", "picture", "post", "references", "generated"])
    for row in rows:
        table.add_data(row.id, picture(row.jpeg), row.post, "\n".join(row.references), "\n".join(row.generated))
    return table


def _teardown() -> None:
    """Ends W&B's service process here, where an error does no harm: at the interpreter's exit it prints a traceback."""
    import wandb

    wandb.teardown()


def _kill_service() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.name().startswith("wandb-core"):
                child.kill()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
