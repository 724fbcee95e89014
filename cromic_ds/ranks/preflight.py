"""What must hold on all ranks before a run trains, checked by all of them together: minutes here, or a lost night."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
import socket
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

from cromic_ds.errors import UserError
from cromic_ds.ranks.collectives import barrier, from_main, gather_objects
from cromic_ds.ranks.launcher import Ranks, local_device
from cromic_ds.shipped import PACKAGE

log = logging.getLogger(__name__)
LIBRARIES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")
BYTES_PER_PARAMETER = 16  # of a checkpoint: weights, and the optimizer's three numbers, at 4 bytes
SKEW_SECONDS = 5.0
VISIBLE_SECONDS = 5.0  # within which a file of one host is seen on the others


def preflight(
    folder: Path, attempt: str, settings: dict, data_fingerprint: str, n_parameters: int, checkpoints: int, ranks: Ranks
) -> None:
    """Compare all ranks with rank 0, and try what the run will need.

    Args:
        settings: of the whole run, as this rank understood them.
        n_parameters: of the model, its averaged copy included.
        checkpoints: how many there will be at a time, the one being written included.

    Raises:
        UserError: what differs or is missing, with the hosts it differs or is missing on.
    """
    start = time.perf_counter()
    compare(facts(settings, data_fingerprint))
    check_shared(folder, attempt, ranks)
    free = check_disk(folder, n_parameters * BYTES_PER_PARAMETER, checkpoints, ranks)
    speed = check_all_reduce(ranks)
    skew = clock_skew()
    hosts = len(set(gather_objects(socket.gethostname())))
    log.info(
        "preflight: %d ranks on %d hosts agree, in %.1f s; %s%.1f GB free; clocks within %.2f s",
        *(ranks.world_size, hosts, time.perf_counter() - start),
        f"all-reduce {speed / 1e9:.2f} GB/s; " if speed else "",
        *(free / 1e9, skew),
    )


def facts(settings: dict, data_fingerprint: str) -> dict[str, str]:
    """What must be the same on all ranks, by what to call it."""
    settings = {**settings, "data": {k: v for k, v in settings["data"].items() if k != "path"}}  # may be node-local
    return {
        "code of cromic_ds": code_fingerprint(),
        "settings": digest(json.dumps(settings, sort_keys=True, default=str)),
        "store (--data.path)": data_fingerprint,
        "Python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def code_fingerprint() -> str:
    """Of the package's Python files, names included."""
    package = PACKAGE
    hashed = hashlib.blake2b(digest_size=8)
    for path in sorted(package.rglob("*.py")):
        hashed.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return hashed.hexdigest()


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def compare(mine: dict[str, str]) -> None:
    """Raises UserError, on every rank, where one differs from rank 0."""
    everyone = gather_objects((socket.gethostname(), mine))
    first_host, first = everyone[0]
    for what, expected in first.items():
        other = {host: its[what] for host, its in everyone if its[what] != expected}
        if other:
            named = ", ".join(f"{host} has {value}" for host, value in sorted(other.items()))
            raise UserError(f"not the same {what} on all hosts: {first_host} has {expected}, {named}")


def check_shared(folder: Path, attempt: str, ranks: Ranks) -> None:
    """Every rank sees what rank 0 writes into the run folder, and can write there itself."""
    probe = folder / f".preflight-{attempt}"
    if ranks.is_main:
        probe.write_text(attempt)
    barrier()
    problem, end = None, time.monotonic() + VISIBLE_SECONDS
    while not probe.exists() and time.monotonic() < end:
        time.sleep(0.2)
    if not probe.exists():
        problem = "does not see what rank 0 writes there"
    else:
        mine = folder / f".preflight-{attempt}-{ranks.rank}"
        try:
            mine.write_text(attempt)
            mine.unlink()
        except OSError as error:
            problem = f"cannot write there ({error.strerror})"
    problems = {host: p for host, p in gather_objects((socket.gethostname(), problem)) if p}
    if ranks.is_main:
        probe.unlink()
    if problems:
        named = ", ".join(f"{host} {p}" for host, p in sorted(problems.items()))
        raise UserError(f"--out {folder} must be one folder for all hosts: {named}")


def check_disk(folder: Path, checkpoint_bytes: int, checkpoints: int, ranks: Ranks) -> int:
    """Free bytes, as rank 0 sees them; refused where the checkpoints to come do not fit beside those that are there."""
    free = there = 0
    if ranks.is_main:
        free = shutil.disk_usage(folder).free
        there = sum(p.stat().st_size for p in (folder / "checkpoints").rglob("*") if p.is_file())
    free, there = from_main((free, there))
    needed = checkpoints * checkpoint_bytes
    if needed - there > free:
        raise UserError(
            f"--out {folder}: {checkpoints} checkpoints of about {checkpoint_bytes / 1e9:.2f} GB need "
            f"{(needed - there) / 1e9:.2f} GB and {free / 1e9:.2f} GB are free: make room, use another disk, or lower "
            "loop.keep_last"
        )
    return free


def check_all_reduce(ranks: Ranks, megabytes: int = 16, rounds: int = 3) -> float:
    """Bytes a second that an all-reduce moves for each rank, counted as the ring sends them; 0 for a single rank."""
    if ranks.world_size == 1:
        return 0.0
    n = ranks.world_size
    values = torch.arange(megabytes * 250_000, device=local_device(), dtype=torch.float32) % 1000
    expected = values * (n * (n + 1) / 2)
    for round_ in range(rounds + 1):  # the first one sets up connections
        if round_ == 1:
            start = time.perf_counter()
        tensor = values * (ranks.rank + 1)
        dist.all_reduce(tensor)
        right = torch.equal(tensor, expected)
    if tensor.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    wrong = sorted({host for host, ok in gather_objects((socket.gethostname(), right)) if not ok})
    if wrong:
        raise UserError(f"an all-reduce gave wrong sums on {', '.join(wrong)}: do not train on these hosts")
    return rounds * values.numel() * 4 * 2 * (n - 1) / n / seconds


def clock_skew() -> float:
    """Seconds between the clocks furthest apart; above SKEW_SECONDS the log says whose."""
    barrier()
    times = gather_objects((socket.gethostname(), time.time()))
    first_host, first = times[0]
    off = {host: t - first for host, t in times if abs(t - first) > SKEW_SECONDS}
    for host, seconds in sorted(off.items()):
        log.warning(
            "the clock of host %s is %+.0f s off that of %s: times in logs will not compare", host, seconds, first_host
        )
    values = [t for _, t in times]
    return max(values) - min(values)
