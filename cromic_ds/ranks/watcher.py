"""The process that watches one rank. It is started by path and uses the standard library alone, so that it starts at once.

A rank that is stopped, stuck in C++ or killed cannot report that itself, and its peers would wait for it in a collective.
So each rank has a watcher on its host, which writes RUN/ranks/rank-0000.json and ends its rank when the run cannot continue.
Watchers communicate through the run folder only: the first one to see a failure creates RUN/ranks/failed-ATTEMPT.json, and the
others end their ranks when they see that file.
"""

import json
import os
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = str(Path(__file__).resolve().parents[2])  # the folder that the package lies in
if __name__ == "__main__" and ROOT not in sys.path:  # Python's isolated mode finds installed packages only
    sys.path.insert(0, ROOT)

from cromic_ds.files import read_json_if_there, write_json  # noqa: E402
from cromic_ds.ranks.processes import oom_kills, process_state  # noqa: E402
from cromic_ds.run_folder import RunFolder  # noqa: E402

TICK = 0.5  # seconds between looks
START = 600.0  # least seconds without progress that are allowed during the start: DeepSpeed may have to compile
BEAT = 5.0  # seconds after which a rank's file is written even if nothing changed
# Seconds that a rank has to end by itself or to write its stacks, and that a waiting rank's watcher leaves to the one it
# waits for.
GRACE = 5.0
LAST_WORD = 10.0  # seconds that the failed rank's report waits for the other ranks to end
STARTING = ("starting", "preflight", "loading")
ALIVE = ("starting", "running")

CRASHES = {"Bus error": ": is /dev/shm full, or was a file cut off that it had mapped?"}  # signal -> what to look at


class WaitingCode(NamedTuple):
    """Files and folders (ending in "/") of the Python code that a rank runs while it waits for its peers.

    The rank derives them from the modules that it has imported, so they are right wherever the packages are installed.
    """

    collective: list[str]
    """Calls collectives: a rank waits if any of its innermost six frames is in this code."""
    synchronizing: list[str]
    """Waits for an earlier collective or for the GPU: a rank waits if one of its innermost two frames is in this code."""

    def waits(self, stack: str) -> bool:
        """Return whether the main thread of a stack that faulthandler wrote waits for other ranks."""
        main_thread = stack.partition("Current thread")[2].split("\n\n")[0]
        innermost = main_thread.splitlines()[1:7]  # the innermost call comes first
        return any(self.holds(line, self.collective) for line in innermost) or any(
            self.holds(line, self.synchronizing) for line in innermost[:2]
        )

    @staticmethod
    def holds(line: str, places: list[str]) -> bool:
        """Return whether a line of a stack, or a file name, names one of the places."""
        return any(place in line for place in places)


def claim_failure(mark: Path, first: dict[str, Any]) -> bool:
    """Create the file that names the first failure of a run. Return False if another rank has done so.

    If the disk is full or gone, nobody can know: every rank then counts as the first.
    """
    try:
        with mark.open("x", encoding="utf-8") as file:
            json.dump(first, file, ensure_ascii=False)
    except FileExistsError:
        return False
    except OSError:
        pass
    return True


class Watcher:
    """Watches its parent process, a rank, which reports its progress through standard input."""

    def __init__(self, about: dict[str, Any], timeout: float, stack: int, waiting: WaitingCode):
        """
        Args:
            about: what identifies the rank: rank, world_size, host, pid, job.
            timeout: seconds without progress after which the rank counts as hanging.
            stack: descriptor of the file that the rank writes its stacks to on SIGUSR2.
        """
        self.rank_pid: int = about["pid"]
        self.timeout = timeout
        self.stack = stack
        self.waiting = waiting
        self.oom_kills = oom_kills()
        self.state: dict[str, Any] = {
            **about,
            "guard_pid": os.getpid(),
            "state": "starting",
            "step": 0,
            "phase": "starting",
            "since": time.time(),
            "error": None,
            "traceback": None,
        }
        self.run_folder: RunFolder | None = None
        self.failed: Path | None = None  # exists once a rank of the run has failed
        self.progress = time.monotonic()
        self.written = 0.0
        self.beats = 0
        self.ended = False  # the rank has reported its end

    def run(self) -> None:
        os.set_blocking(0, False)
        buffer, open_ = b"", True
        while True:
            if open_ and select.select([0], [], [], TICK)[0]:
                data = os.read(0, 1 << 16)
                if not (open_ := bool(data)):
                    self.wait_for_end()
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self.take(json.loads(line))
            elif not open_:
                time.sleep(TICK)
            self.write()
            if os.getppid() != self.rank_pid:
                return self.rank_is_gone()
            if self.failed and self.failed.exists() and not self.ended and self.obey():
                return None
            if not self.ended and time.monotonic() - self.progress > self.patience and self.hangs():
                return None

    def wait_for_end(self) -> None:
        """The rank has closed its end of the pipe, so it is about to end. Slurm may leave this process less than a tick."""
        end = time.monotonic() + TICK
        while os.getppid() == self.rank_pid and time.monotonic() < end:
            time.sleep(0.002)

    def take(self, message: dict[str, Any]) -> None:
        """Note what the rank reports; every report is progress."""
        self.progress = time.monotonic()
        if "folder" in message:
            self.run_folder = RunFolder(message.pop("folder"))
            self.failed = self.run_folder.failure(message["attempt"])
        self.ended = message.pop("ended", self.ended)
        changed = any(self.state.get(k) != v for k, v in message.items() if k != "step")
        self.state.update(message, since=time.time())
        self.write(now=changed)

    @property
    def patience(self) -> float:
        return max(self.timeout, START) if self.state["phase"] in STARTING else self.timeout

    # ---- what is written

    def write(self, now: bool = False) -> None:
        """Write the rank's file: at once if its state or phase changed, else about every BEAT seconds."""
        if self.run_folder is None or not (now or time.monotonic() - self.written > BEAT):
            return
        self.written = time.monotonic()
        self.beats += 1
        try:
            state = {**self.state, "time": time.time()}
            write_json(self.run_folder.rank_state(self.state["rank"]), state, durable=False)
            if self.state["rank"] == 0:
                self.refresh_lock(self.run_folder.lock)
        except OSError:  # the disk is full or gone: the run itself will report that
            pass

    def refresh_lock(self, lock: Path) -> None:
        """Change the run folder's lock, so that other hosts see that its holder lives."""
        holder = read_json_if_there(lock)
        if holder and holder.get("attempt") == self.state["attempt"]:
            write_json(lock, {**holder, "beat": self.beats}, durable=False)

    # ---- how a rank ends

    def rank_is_gone(self) -> None:
        if self.ended:
            self.write(now=True)
            return
        crash, stack = self.crash()
        oom = "the memory of its cgroup was used up" if oom_kills() > self.oom_kills else "killed, or out of memory"
        how, why = ("crashed", crash) if crash else ("died without reporting an error", oom)
        self.fail("killed", f"{self.name} {how} {self.place} ({why})", stack or None)

    def crash(self) -> tuple[str, str]:
        """Return the signal by which the rank crashed and its stacks, as faulthandler wrote them; empty if it did not crash."""
        written = os.pread(self.stack, os.fstat(self.stack).st_size, 0).decode(errors="replace")
        what, stack = (re.findall(r"Fatal Python error: (.+)\s+([\s\S]*)", written) or [("", "")])[-1]
        return what + CRASHES.get(what, ""), stack

    def hangs(self) -> bool:
        """Handle a rank without progress: end it, unless it only waits for other ranks that make progress.

        Returns whether it was ended.
        """
        stopped = process_state(self.rank_pid) == "T"
        stack = self.dump(resume=stopped)
        if self.waiting.waits(stack) and not stopped:
            before, end = self.others(), time.monotonic() + GRACE
            while time.monotonic() < end:
                if self.failed and self.failed.exists():
                    return self.obey(stack)
                if os.getppid() != self.rank_pid:
                    self.rank_is_gone()
                    return True
                time.sleep(TICK)
            if self.others() != before:
                self.progress = time.monotonic()
                return False
            why = f"waits for the other ranks, and none of them reports why ({self.doubt()})"
        else:
            why = "is stopped by a signal" if stopped else "hangs outside of any collective"
        self.kill()
        error = f"{self.name} {why}: no progress for {self.patience:.0f} s {self.place}"
        if not self.fail("hung", error, stack):
            self.repeat(error)
        return True

    def others(self) -> list[tuple]:
        """Return how far each of the other ranks is."""
        return [(s.get("step"), s.get("phase"), s.get("since")) for s in self.states()]

    def states(self) -> list[dict[str, Any]]:
        """Return what the watchers of the other ranks wrote last."""
        if self.run_folder is None:
            return []
        others = [rank for rank in range(self.state["world_size"]) if rank != self.state["rank"]]
        return [read_json_if_there(self.run_folder.rank_state(rank)) or {} for rank in others]

    def doubt(self) -> str:
        hosts = sorted({s["host"] for s in self.states() if "host" in s} - {self.state["host"]})
        return f"is the network to {', '.join(hosts)} up?" if hosts else "is the network between the hosts up?"

    def obey(self, stack: str | None = None) -> bool:
        """End the rank because one has failed: by force, unless it ends by itself within GRACE seconds.

        The one that failed may be this rank: then it reports its end here first. Returns whether it was ended by force.
        """
        end = time.monotonic() + GRACE
        while time.monotonic() < end and os.getppid() == self.rank_pid and not self.ended:
            if select.select([0], [], [], TICK)[0] and (data := os.read(0, 1 << 16)):
                for line in data.splitlines():
                    self.take(json.loads(line))
            time.sleep(TICK / 5)
        if self.ended:
            return False
        self.kill()
        error = f"ended because rank {self.first_failure().get('rank')} failed"
        self.state.update(state="killed", error=error, traceback=stack)
        self.repeat(error)
        self.write(now=True)
        return True

    def first_failure(self) -> dict[str, Any]:
        return (read_json_if_there(self.failed) if self.failed else None) or {}

    def repeat(self, otherwise: str) -> None:
        """Let rank 0 print the first failure, because the output of the rank that failed may be lost with its host."""
        if self.state["rank"] == 0:
            print(f"error: {self.first_failure().get('error', otherwise)}", file=sys.stderr, flush=True)

    def fail(self, state: str, error: str, stack: str | None = None) -> bool:
        """Report that the rank has failed. Return whether this is the first failure of the run."""
        self.state.update(state=state, error=error, traceback=stack)
        # Without a run folder yet, the other ranks cannot know.
        first = self.failed is None or claim_failure(self.failed, {k: self.state[k] for k in ("rank", "job", "error")})
        self.write(now=True)
        if first:
            self.note(error, stack)
            self.wait_for_others()
            print(f"{stack or ''}\nerror: {error}\n{self.advice}", file=sys.stderr, flush=True)
        return first

    def wait_for_others(self) -> None:
        """Wait a little for the other ranks to end, so that this rank's report is the last that the user sees."""
        end = time.monotonic() + LAST_WORD
        while time.monotonic() < end and any(state.get("state") in ALIVE for state in self.states()):
            time.sleep(TICK)

    def note(self, error: str, stack: str | None) -> None:
        """Add the failure to the run's log."""
        if self.run_folder is None:
            return
        try:
            with self.run_folder.log.open("a", encoding="utf-8") as log:
                when = time.strftime("%Y-%m-%d %H:%M:%S")
                log.write(f"{when} ERROR [rank {self.state['rank']}/{self.state['world_size']}] {error}\n{stack or ''}")
        except OSError:
            pass

    @property
    def name(self) -> str:
        return f"rank {self.state['rank']} on host {self.state['host']} (pid {self.rank_pid})"

    @property
    def place(self) -> str:
        return f"after step {self.state['step']}, while {self.state['phase']}"

    @property
    def advice(self) -> str:
        folder = self.run_folder
        return f"run the same command again to resume from the newest checkpoint in {folder}" if folder else ""

    def kill(self, number: int = signal.SIGKILL) -> None:
        if os.getppid() == self.rank_pid:  # otherwise the number may belong to another process by now
            os.kill(self.rank_pid, number)

    def dump(self, resume: bool) -> str:
        """Return the rank's stacks; empty if it does not answer within GRACE seconds. `resume` continues a stopped rank, which
        writes them before anything else."""
        before = size = os.fstat(self.stack).st_size
        self.kill(signal.SIGUSR2)
        if resume:
            self.kill(signal.SIGCONT)
        end = time.monotonic() + GRACE
        while time.monotonic() < end and (size == before or size != os.fstat(self.stack).st_size):
            size = os.fstat(self.stack).st_size
            time.sleep(0.05)
        return os.pread(self.stack, 1 << 16, before).decode(errors="replace")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # launchers signal whole process groups; the watcher ends after its rank
    about, timeout, stack, waiting = map(json.loads, sys.argv[1:])
    Watcher(about, timeout, stack, WaitingCode(*waiting)).run()
