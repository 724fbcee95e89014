"""`cromic-ds status RUN …`: how runs are, from the files in their folders alone.

Each rank's guard writes RUN/ranks/rank-0000.json anew every few seconds; a rank that should be running and whose file stays
as it is, is dead. That is seen from the file changing where its time is in doubt: clocks of hosts differ.
"""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from cromic_ds.errors import UserError
from cromic_ds.tracking.jsonl import newest_metrics

BEAT = 7.0  # seconds within which a living rank's file is written anew, with something to spare
SILENCE = 30.0  # seconds after which a rank whose process cannot be looked up is in doubt
LOST = 86400.0  # seconds after which there is no doubt: no clock is that far off
ALIVE, FAILED = ("starting", "running"), ("failed", "killed", "hung")
COLORS = {"running": "green", "finished": "green", "stopped": "yellow", "dead": "red", "failed": "red"}


@dataclass
class StatusSettings:
    """Which runs, and how they are shown."""

    runs: list[str] = field(default_factory=list)
    """Run folders."""
    json: bool = False
    """Print one JSON object a run instead of text."""


@dataclass
class RunStatus:
    """How a run is. Times in seconds; None = not known."""

    folder: str
    state: str  # running, stopped (by a signal; it can go on), finished, dead (without a word) or failed
    phase: str = ""  # what a running one does
    since_progress: float | None = None  # since its slowest rank last said that it gets on
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
    hosts: dict[str, list[int]] = field(default_factory=dict)  # their ranks
    job: str | None = None  # Slurm's number
    ranks: list[dict] = field(default_factory=list)  # the files of all ranks, "state" corrected for those that died
    traceback: str | None = None  # of the first rank that failed


def status(settings: StatusSettings) -> None:
    """Print how the runs are; exit code 1 if one is dead or failed. Raises UserError for what is no run folder."""
    if not settings.runs:
        raise UserError("no run folder given: cromic-ds status runs/first")
    runs = [read_status(Path(folder)) for folder in settings.runs]
    if settings.json:
        print("\n".join(json.dumps(dataclasses.asdict(run), ensure_ascii=False) for run in runs))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for run in runs:
            console.print(describe(run))
    if any(run.state in ("dead", "failed") for run in runs):
        sys.exit(1)


# ---- reading


def read_status(folder: Path, now: float | None = None) -> RunStatus:
    """Raises UserError where `folder` holds no run."""
    config = read_config(folder)
    now = time.time() if now is None else now
    ranks = read_ranks(folder, now)
    finished = read_json(folder / "finished.json")
    run = RunStatus(str(folder), overall(ranks, finished is not None), ranks=ranks)
    if not ranks and not finished:
        just_started = now - (folder / "config.yaml").stat().st_mtime < SILENCE
        run.state, run.phase = ("running", "starting") if just_started else ("dead", "")
    if ranks:
        slowest = min(ranks, key=lambda rank: rank["since"])
        run.phase, run.since_progress = slowest["phase"], max(0.0, now - slowest["since"])
        run.job = ranks[0].get("job")
        for rank in ranks:
            run.hosts.setdefault(rank["host"], []).append(rank["rank"])
        run.traceback = first_traceback(folder, ranks)
    add_metrics(run, folder, config, now)
    add_checkpoint(run, folder, now)
    run.step = max(run.step, (finished or {}).get("step", 0))
    return run


def read_config(folder: Path) -> dict:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return {**config, "loop": dict(config["loop"])}
    except FileNotFoundError:
        raise UserError(f"{folder}: no run folder (no config.yaml in it)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise UserError(f"{folder}: its config.yaml is not the configuration of a run") from None


def read_json(path: Path) -> dict | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def read_ranks(folder: Path, now: float) -> list[dict]:
    """The ranks' files in order; "state" is "dead" for those that should be running and are not, "error" says so."""
    paths = sorted((folder / "ranks").glob("rank-*.json"))
    ranks = {path: values for path in paths if (values := read_json(path))}
    verdicts = {path: verdict(values, now) for path, values in ranks.items() if values["state"] in ALIVE}
    doubtful = {path for path, found in verdicts.items() if found == "doubtful"}
    dead = {path for path, found in verdicts.items() if found == "dead"}
    dead |= unchanged({path: ranks[path] for path in doubtful})
    for path in dead | doubtful:
        ranks[path] = rank = read_json(path) or ranks[path]  # its guard may have had the last word meanwhile
        if path in dead and rank["state"] in ALIVE:
            silent = ago(now - rank["time"])
            error = f"no sign of life for {silent}, after step {rank['step']}, while {rank['phase']}"
            ranks[path] = {**rank, "state": "dead", "error": error}
    return list(ranks.values())


def verdict(rank: dict, now: float) -> str:
    """Whether a rank that says it is running is "alive", "dead" or "doubtful"."""
    silent = now - rank["time"]
    if rank["host"] == socket.gethostname():
        if parent(rank["guard_pid"]) == rank["pid"]:  # of a number alone one could not tell whose it is by now
            return "alive"
        return "doubtful" if silent < BEAT else "dead"  # in a container with the host's name its processes are not seen
    if abs(silent) < SILENCE:
        return "alive"
    return "doubtful" if silent < LOST else "dead"


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def unchanged(ranks: dict[Path, dict]) -> set[Path]:
    """Those whose file stays as it was for longer than a living rank's would."""
    end = time.monotonic() + BEAT
    while ranks and time.monotonic() < end:
        time.sleep(0.25)
        ranks = {path: values for path, values in ranks.items() if read_json(path) == values}
    return set(ranks)


def overall(ranks: list[dict], finished: bool) -> str:
    states = {rank["state"] for rank in ranks}
    if states & set(FAILED):
        return "failed"
    if "dead" in states:
        return "dead"
    if states & set(ALIVE):
        return "running"
    return "finished" if finished else "stopped"


def first_traceback(folder: Path, ranks: list[dict]) -> str | None:
    """The traceback or stacks of the rank that failed before the others, which then ended because of it."""
    mark = next((folder / "ranks").glob("failed-*.json"), None)
    first = (read_json(mark) or {}).get("rank") if mark else None
    return next((rank.get("traceback") for rank in ranks if rank["rank"] == first), None)


def add_metrics(run: RunStatus, folder: Path, config: dict, now: float) -> None:
    """What the newest steps in metrics.jsonl say."""
    run.total_steps = config["loop"].get("steps") or None
    steps = [record for record in newest_metrics(folder) if record["kind"] == "train"]
    if not steps:
        run.step = max((rank["step"] for rank in run.ranks), default=0)
        return
    last, loop = steps[-1], config["loop"]
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


def add_checkpoint(run: RunStatus, folder: Path, now: float) -> None:
    complete = sorted((folder / "checkpoints").glob(f"step-{'[0-9]' * 8}/manifest.json"))
    if complete:
        run.checkpoint = complete[-1].parent.name
        run.checkpoint_age = max(0.0, now - complete[-1].stat().st_mtime)
        run.step = max(run.step, int(run.checkpoint.removeprefix("step-")))


# ---- showing


def describe(run: RunStatus) -> str:
    """A run in a few lines, with rich's markup."""
    lines = [f"[bold]{escape(run.folder)}[/]: [{COLORS[run.state]}]{run.state}[/]" + escape(doing(run))]
    lines += [f"  {escape(line)}" for line in (progress(run), places(run), saved(run), skipped(run)) if line]
    for error, ranks in errors(run).items():
        lines.append(f"  [red]{escape(named(ranks))}[/]: {escape(error)}")
    if not run.ranks and run.state == "dead":
        lines.append("  no rank has left a word (RUN/ranks): killed while it started?")
    if run.traceback:
        lines += [f"    {escape(line)}" for line in run.traceback.rstrip().splitlines()[-12:]]
    return "\n".join(lines)


def doing(run: RunStatus) -> str:
    if run.state != "running":
        return ""
    since = f" for {ago(run.since_progress)}" if run.since_progress and run.since_progress >= 5 else ""
    return f", {run.phase}{since}"


def progress(run: RunStatus) -> str:
    of = f" of {run.total_steps:,} ({run.step / run.total_steps:.0%})" if run.total_steps else ""
    parts = [f"step {run.step:,}{of}"]
    if run.seconds_per_step is not None:
        parts.append(f"{run.seconds_per_step:.3g} s a step, {run.posts_per_second:.1f} posts/s")
    if run.loss is not None:
        parts.append(f"loss {run.loss:.4f}")
    if run.seconds_left and run.state != "finished":
        parts.append(
            f"{timedelta(seconds=round(run.seconds_left))} left{'' if run.state == 'running' else ' once it goes on'}"
        )
    return ", ".join(parts)


def places(run: RunStatus) -> str:
    hosts = ", ".join(f"{host} ({named(ranks)})" for host, ranks in run.hosts.items())
    return hosts + (f", Slurm job {run.job}" if run.job else "")


def saved(run: RunStatus) -> str:
    if run.checkpoint is None:
        return "no checkpoint yet"
    behind = run.step - int(run.checkpoint.removeprefix("step-"))
    repeated = f", {behind:,} step{'s' if behind > 1 else ''} before the last" if behind else ""
    return f"checkpoint {run.checkpoint}, {ago(run.checkpoint_age)} old{repeated}"


def skipped(run: RunStatus) -> str:
    counts = {"steps": run.skipped_steps, "records": run.skipped_records}
    return ", ".join(f"skipped {what}: {n}" for what, n in counts.items() if n)


def errors(run: RunStatus) -> dict[str, list[int]]:
    """The ranks by their last error; first those that failed by themselves."""
    found: dict[str, list[int]] = {}
    for rank in sorted(run.ranks, key=lambda rank: str(rank.get("error")).startswith("ended because")):
        if rank.get("error"):
            found.setdefault(rank["error"], []).append(rank["rank"])
    return found


def named(ranks: list[int]) -> str:
    """[0, 1, 2, 5] -> "ranks 0-2, 5" """
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"


def ago(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
