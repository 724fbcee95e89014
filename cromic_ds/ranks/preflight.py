"""Checks that all ranks make together before a run trains: a mistake is found in minutes instead of after a night."""

import json
import logging
import platform
import shutil
import socket
import time
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist

from cromic_ds.errors import UserError
from cromic_ds.files import digest
from cromic_ds.ranks.collectives import barrier, from_main, gather_objects
from cromic_ds.ranks.launcher import Ranks, local_device
from cromic_ds.run_folder import RunFolder
from cromic_ds.shipped import PACKAGE

log = logging.getLogger(__name__)
LIBRARIES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")
BYTES_PER_PARAMETER = 16  # of a checkpoint: the weight and the optimizer's three numbers, at 4 bytes each
SKEW_SECONDS = 5.0
VISIBLE_SECONDS = 5.0  # within which a file that one host writes is seen on the others


def preflight(
    folder: RunFolder,
    attempt: str,
    settings: dict[str, Any],
    data_fingerprint: str,
    n_parameters: int,
    checkpoints: int,
    ranks: Ranks,
) -> None:
    """Compare all ranks with rank 0, and try what the run will need.

    Args:
        settings: all settings of the run, as this rank understood them.
        n_parameters: parameters of the model, including its averaged copy.
        checkpoints: how many checkpoints exist at a time, including the one that is being written.

    Raises:
        UserError: something differs or is missing; the message names the hosts.
    """
    start = time.perf_counter()
    compare_ranks(rank_facts(settings, data_fingerprint))
    check_shared(folder, attempt, ranks)
    free = check_disk(folder, n_parameters * BYTES_PER_PARAMETER, checkpoints, ranks)
    speed = check_all_reduce(ranks)
    skew = clock_skew()
    hosts = len(set(gather_objects(socket.gethostname())))
    log.info(
        "preflight: %d ranks on %d hosts agree, in %.1f s; %s%.1f GB free; clocks within %.2f s",
        ranks.world_size,
        hosts,
        time.perf_counter() - start,
        f"all-reduce {speed / 1e9:.2f} GB/s; " if speed else "",
        free / 1e9,
        skew,
    )


def rank_facts(settings: dict[str, Any], data_fingerprint: str) -> dict[str, str]:
    """Return what must be the same on all ranks, by the name that messages use for it."""
    data = {k: v for k, v in settings["data"].items() if k != "path"}  # the path may be local to the host
    return {
        "code of cromic_ds": code_fingerprint(),
        "settings": digest(json.dumps({**settings, "data": data}, sort_keys=True, default=str)),
        "store (--data.path)": data_fingerprint,
        "Python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def code_fingerprint() -> str:
    """Return a hash of the names and contents of the package's Python files."""
    files = sorted(PACKAGE.rglob("*.py"))
    return digest(b"".join(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() for path in files))


def compare_ranks(mine: dict[str, str]) -> None:
    """Raise UserError, on every rank, if a fact of one rank differs from rank 0's."""
    everyone = gather_objects((socket.gethostname(), mine))
    first_host, first = everyone[0]
    for what, expected in first.items():
        other = {host: its[what] for host, its in everyone if its[what] != expected}
        if other:
            named = ", ".join(f"{host} has {value}" for host, value in sorted(other.items()))
            raise UserError(f"not the same {what} on all hosts: {first_host} has {expected}, {named}")


def check_shared(folder: RunFolder, attempt: str, ranks: Ranks) -> None:
    """Raise UserError unless every rank sees what rank 0 writes into the run folder, and can write there itself."""
    probe = folder.preflight(attempt)
    if ranks.is_main:
        probe.write_text(attempt)
    barrier()
    problem, end = None, time.monotonic() + VISIBLE_SECONDS
    while not probe.exists() and time.monotonic() < end:
        time.sleep(0.2)
    if not probe.exists():
        problem = "does not see what rank 0 writes there"
    else:
        mine = folder.preflight(attempt, ranks.rank)
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


def check_disk(folder: RunFolder, checkpoint_bytes: int, checkpoints: int, ranks: Ranks) -> int:
    """Return the free bytes, as rank 0 sees them.

    Raises:
        UserError: the checkpoints of the run do not fit, counting those that exist already.
    """
    free = there = 0
    if ranks.is_main:
        free = shutil.disk_usage(folder).free
        there = sum(p.stat().st_size for p in folder.checkpoints.rglob("*") if p.is_file())
    free, there = from_main((free, there))
    needed = checkpoints * checkpoint_bytes
    if needed - there > free:
        raise UserError(
            f"--out {folder}: {checkpoints} checkpoints of about {checkpoint_bytes / 1e9:.2f} GB need "
            f"{(needed - there) / 1e9:.2f} GB and {free / 1e9:.2f} GB are free: make room, use another disk, or lower "
            "checkpoint.keep_last"
        )
    return free


def check_all_reduce(ranks: Ranks, megabytes: int = 16, rounds: int = 3) -> float:
    """Return the bytes per second that each rank sends in a ring all-reduce; 0 for a single rank.

    Raises:
        UserError: the sums are wrong.
    """
    if ranks.world_size == 1:
        return 0.0
    n = ranks.world_size
    values = torch.arange(megabytes * 250_000, device=local_device(), dtype=torch.float32) % 1000
    expected = values * (n * (n + 1) / 2)
    start = 0.0
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
    """Return the largest difference between two hosts' clocks, in seconds; the log names those above SKEW_SECONDS."""
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
