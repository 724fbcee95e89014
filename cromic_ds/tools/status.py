"""`cromic-ds status RUN …`: the state of runs, read from the files in their folders alone.

The watcher of each rank rewrites RUN/ranks/rank-0000.json every few seconds. A rank that should be running and whose file does
not change is dead. Whether the file changes is observed, not computed from the time in it, because clocks of hosts differ.
"""

import dataclasses
import json
import math
import socket
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from cromic_ds.errors import UserError
from cromic_ds.files import read_json_if_there
from cromic_ds.ranks.launcher import name_ranks
from cromic_ds.ranks.processes import parent_pid
from cromic_ds.ranks.watcher import ALIVE, BEAT
from cromic_ds.run_folder import MANIFEST, RunFolder, step_of
from cromic_ds.tools.display import STATE_COLORS, age, duration
from cromic_ds.tracking.jsonl import newest_metrics

REWRITTEN = BEAT + 2  # seconds within which the file of a living rank is rewritten, with some margin
SILENCE = 30.0  # seconds after which it is in doubt whether a rank on another host lives
LOST = 86400.0  # seconds after which a rank is certainly dead: no clock is that far off


@dataclass
class StatusSettings:
    """Which runs to show, and how."""

    runs: list[str] = field(default_factory=list)
    """Run folders."""
    json: bool = False
    """Print one JSON object per run instead of text."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if not self.runs:
            raise UserError("no run folder given: cromic-ds status runs/first")


@dataclass
class RunStatus:
    """The state of a run. Times are in seconds; None = unknown."""

    folder: str
    state: str  # running, stopped (by a signal; can be resumed), finished, dead (without reporting an error) or failed
    phase: str = ""  # what a running one does
    since_progress: float | None = None  # since its slowest rank last reported progress
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    seconds_per_step: float | None = None
    posts_per_second: float | None = None
    seconds_left: float | None = None
    skipped_steps: int = 0
    skipped_records: int = 0
    checkpoint: str | None = None
    checkpoint_age: float | None = None
    hosts: dict[str, list[int]] = field(default_factory=dict)  # ranks by host
    job: str | None = None  # Slurm's number
    ranks: list[dict[str, Any]] = field(default_factory=list)  # files of all ranks; "state" of dead ones is "dead"
    traceback: str | None = None  # of the first rank that failed


def status(settings: StatusSettings) -> None:
    """`cromic-ds status`: print the state of the runs. Exits with 1 if a run is dead or failed. Raises UserError if a folder
    is not a run folder."""
    runs = [read_status(Path(folder)) for folder in settings.runs]
    if settings.json:
        print("\n".join(json.dumps(dataclasses.asdict(run), ensure_ascii=False) for run in runs))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for run in runs:
            console.print(status_text(run))
    if any(run.state in ("dead", "failed") for run in runs):
        sys.exit(1)


# ---- reading


def read_status(path: Path, now: float | None = None) -> RunStatus:
    """Return the state of the run in a folder. Raises UserError if the folder holds no run."""
    folder = RunFolder(path)
    loop = read_loop(folder)
    now = time.time() if now is None else now
    ranks = read_ranks(folder, now)
    finished = read_object(folder.finished)
    run = RunStatus(str(path), overall_state(ranks, finished is not None), ranks=ranks)
    if not ranks and not finished:
        just_started = now - folder.config.stat().st_mtime < SILENCE
        run.state, run.phase = ("running", "starting") if just_started else ("dead", "")
    if ranks:
        slowest = min(ranks, key=lambda rank: rank["since"])
        run.phase, run.since_progress = slowest["phase"], max(0.0, now - slowest["since"])
        run.job = ranks[0].get("job")
        for rank in ranks:
            run.hosts.setdefault(rank["host"], []).append(rank["rank"])
        run.traceback = first_traceback(folder, ranks)
    add_metrics(run, path, loop, now)
    add_checkpoint(run, folder, now)
    run.step = max(run.step, (finished or {}).get("step", 0))
    return run


def read_loop(folder: RunFolder) -> dict[str, Any]:
    """Return the run's settings of the loop."""
    try:
        return dict(yaml.safe_load(folder.config.read_text(encoding="utf-8"))["loop"])
    except FileNotFoundError:
        raise UserError(f"{folder.path}: no run folder (no {folder.config.name} in it)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise UserError(f"{folder.path}: its {folder.config.name} is not the configuration of a run") from None


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None if there is none."""
    values = read_json_if_there(path)
    return values if isinstance(values, dict) else None


def read_ranks(folder: RunFolder, now: float) -> list[dict[str, Any]]:
    """Return the files of all ranks in order. A rank that should be running and is not has "state": "dead" and an "error"."""
    ranks = {path: values for path in folder.rank_states() if (values := read_object(path))}
    verdicts = {path: liveness(values, now) for path, values in ranks.items() if values["state"] in ALIVE}
    doubtful = {path: ranks[path] for path, verdict in verdicts.items() if verdict == "doubtful"}
    dead = {path for path, verdict in verdicts.items() if verdict == "dead"} | unchanged_files(doubtful)
    for path in dead | set(doubtful):
        ranks[path] = rank = read_object(path) or ranks[path]  # its watcher may have written the outcome meanwhile
        if path in dead and rank["state"] in ALIVE:
            silent = f"no sign of life for {age(now - rank['time'])}"
            error = f"{silent}, after step {rank['step']}, while {rank['phase']}"
            ranks[path] = {**rank, "state": "dead", "error": error}
    return list(ranks.values())


def liveness(rank: dict[str, Any], now: float) -> str:
    """Return whether a rank whose file says that it runs is "alive", "dead" or "doubtful"."""
    silent = now - rank["time"]
    if rank["host"] == socket.gethostname():
        if parent_pid(rank["guard_pid"]) == rank["pid"]:  # both, because process numbers are used again
            return "alive"
        # The processes of a container with this host's name are invisible here.
        return "doubtful" if silent < REWRITTEN else "dead"
    if abs(silent) < SILENCE:
        return "alive"
    return "doubtful" if silent < LOST else "dead"


def unchanged_files(ranks: dict[Path, dict[str, Any]]) -> set[Path]:
    """Return the files that do not change within the time in which a living rank's file would."""
    end = time.monotonic() + REWRITTEN
    while ranks and time.monotonic() < end:
        time.sleep(0.25)
        ranks = {path: values for path, values in ranks.items() if read_object(path) == values}
    return set(ranks)


def overall_state(ranks: list[dict[str, Any]], finished: bool) -> str:
    states = {rank["state"] for rank in ranks}
    if states & {"failed", "killed", "hung"}:
        return "failed"
    if "dead" in states:
        return "dead"
    if states & set(ALIVE):
        return "running"
    return "finished" if finished else "stopped"


def first_traceback(folder: RunFolder, ranks: list[dict[str, Any]]) -> str | None:
    """Return the traceback or the stacks of the rank that failed first; the other ranks ended because of it."""
    failures = folder.failures()
    first = (read_object(failures[0]) or {}).get("rank") if failures else None
    return next((rank.get("traceback") for rank in ranks if rank["rank"] == first), None)


def add_metrics(run: RunStatus, folder: Path, loop: dict[str, Any], now: float) -> None:
    """Add what the newest steps in metrics.jsonl say."""
    run.total_steps = loop.get("steps") or None
    steps = [record for record in newest_metrics(folder) if record["kind"] == "train"]
    if not steps:
        run.step = max((rank["step"] for rank in run.ranks), default=0)
        return
    last = steps[-1]
    run.step, run.loss = last["step"], last.get("loss")
    run.skipped_steps, run.skipped_records = last.get("skipped_steps", 0), last.get("skipped_records", 0)
    run.seconds_per_step = statistics.median(record["seconds_per_step"] for record in steps)
    run.posts_per_second = statistics.median(record["posts_per_second"] for record in steps)
    if run.total_steps is None and last.get("epoch"):
        posts = round(last["step"] * loop["global_batch"] / last["epoch"])
        run.total_steps = max(1, math.floor(loop["epochs"] * posts / loop["global_batch"]))
    if run.total_steps:
        left = last.get("seconds_left", (run.total_steps - run.step) * run.seconds_per_step)
        since = max(0.0, now - last["time"])  # a clock may have been set back
        run.seconds_left = max(0.0, left - since) if run.state == "running" else left


def add_checkpoint(run: RunStatus, folder: RunFolder, now: float) -> None:
    for name in reversed(folder.step_names()):
        manifest = folder.checkpoints / name / MANIFEST
        if manifest.exists():
            run.checkpoint, run.checkpoint_age = name, max(0.0, now - manifest.stat().st_mtime)
            run.step = max(run.step, step_of(name))
            return


# ---- showing


def status_text(run: RunStatus) -> str:
    """Return a run in a few lines, with rich's markup."""
    phase = f", {run.phase}" if run.state == "running" else ""
    if phase and run.since_progress and run.since_progress >= 5:
        phase += f" for {age(run.since_progress)}"
    hosts = ", ".join(f"{host} ({name_ranks(ranks)})" for host, ranks in run.hosts.items())
    hosts += f", Slurm job {run.job}" if run.job else ""
    lines = [f"[bold]{escape(run.folder)}[/]: [{STATE_COLORS[run.state]}]{run.state}[/]{escape(phase)}"]
    lines += [f"  {escape(line)}" for line in (progress_text(run), hosts, saved_text(run)) if line]
    counts = {"steps": run.skipped_steps, "records": run.skipped_records}
    if skipped := ", ".join(f"skipped {what}: {n}" for what, n in counts.items() if n):
        lines.append(f"  {skipped}")
    errors: dict[str, list[int]] = {}  # those of ranks that failed by themselves come first
    for rank in sorted(run.ranks, key=lambda rank: str(rank.get("error")).startswith("ended because")):
        if rank.get("error"):
            errors.setdefault(rank["error"], []).append(rank["rank"])
    for error, ranks in errors.items():
        lines.append(f"  [red]{escape(name_ranks(ranks))}[/]: {escape(error)}")
    if not run.ranks and run.state == "dead":
        lines.append("  no rank has reported anything (RUN/ranks): was it killed while it started?")
    if run.traceback:
        lines += [f"    {escape(line)}" for line in run.traceback.rstrip().splitlines()[-12:]]
    return "\n".join(lines)


def progress_text(run: RunStatus) -> str:
    of_total = f" of {run.total_steps:,} ({run.step / run.total_steps:.0%})" if run.total_steps else ""
    parts = [f"step {run.step:,}{of_total}"]
    if run.seconds_per_step is not None:
        parts.append(f"{run.seconds_per_step:.3g} s a step, {run.posts_per_second:.1f} posts/s")
    if run.loss is not None:
        parts.append(f"loss {run.loss:.4f}")
    if run.seconds_left and run.state != "finished":
        parts.append(f"{duration(run.seconds_left)} left{'' if run.state == 'running' else ' once it is resumed'}")
    return ", ".join(parts)


def saved_text(run: RunStatus) -> str:
    if run.checkpoint is None or run.checkpoint_age is None:
        return "no checkpoint yet"
    behind = run.step - step_of(run.checkpoint)
    repeated = f", {behind:,} step{'s' if behind > 1 else ''} before the last" if behind else ""
    return f"checkpoint {run.checkpoint}, {age(run.checkpoint_age)} old{repeated}"
