"""Weights & Biases, isolated from the run: its errors and delays neither stop the run nor slow it down."""

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
from typing import Any
from urllib.parse import urlsplit

from cromic_ds.files import write_atomically
from cromic_ds.run_folder import RunFolder
from cromic_ds.tracking.jsonl import plain_value
from cromic_ds.tracking.tracker import SampleRow, Tracker, Values

log = logging.getLogger(__name__)


class WandbTracker(Tracker):
    """Passes everything to one background thread, the only one that talks to W&B.

    The training loop puts a record into a queue and continues: starting, logging, uploading and failing all happen in that
    thread. The first failure is logged, once. While the queue is full, records are dropped; metrics.jsonl has all of them.

    mode: "online", "offline", or "auto": online if a login is found (a key in the environment or in netrc), offline
    otherwise; WANDB_MODE in the environment replaces "auto". If online does not work, the run is recorded offline. Files are in
    RUN/wandb (`wandb sync RUN/wandb/offline-run-*` uploads offline ones), and a resumed run keeps the id in RUN/wandb_run_id.
    Charts have our own `step` as x-axis, because W&B's cannot go back to that of a checkpoint.
    """

    FINISH_SECONDS = 20  # a launcher may kill its processes 30 s after SIGTERM; `wandb sync` uploads the rest
    QUEUE_RECORDS = 10_000

    def __init__(self, mode: str, run_folder: Path, config: dict[str, Any]):
        self._mode, self._folder, self._config = mode, RunFolder(run_folder), config
        self._run: Any = None  # of `wandb.init`, once it is there
        self._warned = self._finished = False
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(self.QUEUE_RECORDS)  # None: stop
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Values, kind: str) -> None:
        record = {"step": step, **{f"{kind}/{name}": plain_value(value) for name, value in values.items()}}
        self._put(lambda: self._run.log(record))

    def samples(self, step: int, rows: list[SampleRow]) -> None:
        self._put(lambda: self._run.log({"step": step, "samples": _table(rows)}))

    def finish(self) -> None:
        """Wait, at most FINISH_SECONDS, until W&B has what is queued; offline it only has to write a file."""
        if self._finished:
            return
        self._finished = True
        deadline = time.monotonic() + self.FINISH_SECONDS
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=self.FINISH_SECONDS)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"did not finish within {self.FINISH_SECONDS} s")
            _kill_service()  # otherwise the interpreter would wait for it at exit
            self._thread.join(5)

    def _put(self, job: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self._warn(f"is too slow: {self.QUEUE_RECORDS} records are waiting")

    def _work(self) -> None:
        with self._harmless():
            self._run = self._start()
        while (job := self._queue.get()) is not None:
            if self._run is not None:
                with self._harmless():
                    job()
        with self._harmless():
            if self._run is not None:
                self._run.finish()
        with self._harmless():
            _teardown()

    def _start(self) -> Any:
        import wandb

        folder = self._folder.wandb
        folder.mkdir(parents=True, exist_ok=True)
        # By default, W&B writes its logs and the pictures to upload to the home folder.
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            os.environ.setdefault(name, str(folder.resolve()))
        os.environ.setdefault("WANDB_SILENT", "true")
        mode, run_id = resolve_mode(self._mode), run_id_of(self._folder)
        try:
            run = self._init(wandb, run_id, mode)
        except Exception as error:  # wandb documents no bound on what init raises
            if mode != "online":
                raise
            self._warn(f"cannot be reached and is recorded offline ({_one_line(error)})")
            mode = "offline"
            with contextlib.suppress(Exception):  # the service may be the problem; a new one starts below
                _teardown()  # otherwise the service considers the run id as in use
            run = self._init(wandb, run_id, mode)
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        log.info("W&B: %s, run id %s, %s", mode, run_id, run.url if mode == "online" else f"files in {run.dir}")
        return run

    def _init(self, wandb: Any, run_id: str, mode: str) -> Any:
        limits = {"init_timeout": 60, "login_timeout": 15, "finish_timeout": self.FINISH_SECONDS * 0.8}
        known = {name: value for name, value in limits.items() if name in wandb.Settings.model_fields}  # by version
        return wandb.init(
            mode=mode,
            id=run_id,
            project=os.environ.get("WANDB_PROJECT") or "cromic-ds",
            name=os.environ.get("WANDB_NAME") or self._folder.path.resolve().name,
            config=self._config,
            dir=str(self._folder.path),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, **known),
        )

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # W&B must never stop a run, whatever it raises
            self._warn(f"failed ({_one_line(error)})")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("W&B %s; the run continues, and metrics.jsonl has every number", what)


def resolve_mode(mode: str) -> str:
    """Return the mode for `wandb.init`: "auto" is decided, and "online" without a login becomes "offline".

    W&B itself would then stop and ask for a key on the terminal.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "auto")
    if mode not in ("auto", "online"):
        return mode
    if _logged_in():
        return "online"
    if mode == "online":
        log.warning("W&B: no login was found (`wandb login`, or WANDB_API_KEY), so the run is recorded offline")
    return "offline"


def run_id_of(folder: RunFolder) -> str:
    """Return the W&B id of this run folder; on first use it is drawn and written to the folder."""
    path = folder.wandb_run_id
    if path.exists() and (run_id := path.read_text().strip()):
        return run_id
    run_id = uuid.uuid4().hex[:8]
    write_atomically(path, run_id + "\n")
    return run_id


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlsplit(wandb.setup().settings.base_url).hostname or ""
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(place).expanduser() for place in places):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host):
                return True
    return False


def _table(rows: list[SampleRow]) -> Any:
    import wandb
    from PIL import Image

    table = wandb.Table(columns=["id", "picture", "post", "references", "generated"])
    for row in rows:
        picture = None if row.jpeg is None else wandb.Image(Image.open(io.BytesIO(row.jpeg)), file_type="jpg")
        table.add_data(row.id, picture, row.post, "\n".join(row.references), "\n".join(row.generated))
    return table


def _teardown() -> None:
    """End W&B's service process here, where an error does no harm: at the interpreter's exit it would print a traceback."""
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
