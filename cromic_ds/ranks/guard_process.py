"""The process that watches one rank. Standard library only, and started by path: it must be there before anything heavy is.

A rank that is stopped, stuck in C++ or killed cannot say so itself, and its peers wait for it in a collective for ever. So each
rank has a guard beside it, on its host, that keeps RUN/ranks/rank-0000.json and ends its rank when the run cannot go on. Guards
talk through the run folder alone: the first to see a failure creates RUN/ranks/failed-ATTEMPT.json, the others obey it.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

TICK = 0.5  # seconds between looks
START = 600.0  # seconds that the start may take without progress whatever the setting: DeepSpeed may have to compile
BEAT = 5.0  # seconds after which a rank's file is written even if nothing changed
GRACE = 5.0  # seconds that a rank has to end by itself, and that a waiting rank's guard leaves to the one it waits for
LAST_WORD = 10.0  # seconds that the failed rank's report waits for the other ranks to end
STARTING = ("starting", "preflight", "loading")

CRASHES = {"Bus error": ": is /dev/shm full, or was a file cut off that it had mapped?"}  # what one can do about it


class WaitingCode(NamedTuple):
    """Files and folders (ending in "/") of the Python code that a rank runs while it waits for its peers.

    The rank derives them from the modules that it has imported, so they are right wherever these are installed.
    """

    collective: list[str]  # calls collectives: any of the innermost six frames
    synchronizing: list[str]  # waits for an earlier collective or the GPU: one of the innermost two frames

    def waits(self, stack: str) -> bool:
        """Return whether the main thread of a stack that faulthandler wrote waits for other ranks."""
        innermost = (
            stack.partition("Current thread")[2].split("\n\n")[0].splitlines()[1:7]
        )  # the innermost call comes first
        return any(self.holds(line, self.collective) for line in innermost) or any(
            self.holds(line, self.synchronizing) for line in innermost[:2]
        )

    @staticmethod
    def holds(line: str, places: list[str]) -> bool:
        """Return whether a line of a stack, or a file name, names one of the places."""
        return any(place in line for place in places)


class Guard:
    """rank_pid: the parent; stack: file descriptor that the rank dumps its stacks to on SIGUSR2."""

    def __init__(self, about: dict, timeout: float, stack: int, waiting: WaitingCode):
        self.rank_pid, self.timeout, self.stack, self.waiting = about["pid"], timeout, stack, waiting
        self.oom_kills = oom_kills()
        self.state = {
            **about,
            **{"guard_pid": os.getpid(), "state": "starting", "step": 0, "phase": "starting", "since": time.time()},
            **{"error": None, "traceback": None},
        }
        self.folder: Path | None = None
        self.failed: Path | None = None  # the mark of the first failure
        self.lock: Path | None = None  # rank 0's guard keeps the run folder's lock fresh
        self.progress = time.monotonic()
        self.written = 0.0
        self.beats = 0
        self.ended = False  # the rank has said its last word

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
        """The rank has let go of its end of the pipe, so it ends now: Slurm may not leave this process the time of a tick."""
        end = time.monotonic() + TICK
        while os.getppid() == self.rank_pid and time.monotonic() < end:
            time.sleep(0.002)

    def take(self, message: dict) -> None:
        self.progress = time.monotonic()
        if "folder" in message:
            self.folder = Path(message.pop("folder"))
            self.failed = self.folder / "ranks" / f"failed-{message['attempt']}.json"
            self.lock = self.folder / "lock.json" if self.state["rank"] == 0 else None
        self.ended = message.pop("ended", self.ended)
        changed = any(self.state.get(k) != v for k, v in message.items() if k != "step")
        self.state.update(message, since=time.time())
        self.write(now=changed)

    @property
    def patience(self) -> float:
        return max(self.timeout, START) if self.state["phase"] in STARTING else self.timeout

    # ---- what is written

    def write(self, now: bool = False) -> None:
        """The rank's file, at once where its state or phase changed, else about every BEAT seconds."""
        if self.folder is None or not (now or time.monotonic() - self.written > BEAT):
            return
        self.written = time.monotonic()
        self.beats += 1
        try:
            write_aside(self.file(self.state["rank"]), {**self.state, "time": time.time()})
            if self.lock and (holder := read(self.lock)) and holder.get("attempt") == self.state["attempt"]:
                write_aside(self.lock, {**holder, "beat": self.beats})
        except OSError:  # a full or lost disk: the run itself will say so
            pass

    def file(self, rank: int) -> Path:
        return self.folder / "ranks" / f"rank-{rank:04d}.json"

    def claim(self, error: str) -> bool:
        """Be the first to say that the run has failed."""
        if self.failed is None:  # the run has no folder yet
            return True
        try:
            descriptor = os.open(self.failed, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        except OSError:
            return True
        first = {k: self.state[k] for k in ("rank", "job", "error")}
        os.write(descriptor, json.dumps(first, ensure_ascii=False).encode())
        os.close(descriptor)
        return True

    # ---- how a rank ends

    def rank_is_gone(self) -> None:
        if self.ended:
            self.write(now=True)
            return
        crash, stack = self.crash()
        oom = "the memory of its cgroup was used up" if oom_kills() > self.oom_kills else "killed, or out of memory"
        how, why = ("crashed", crash) if crash else ("died without a word", oom)
        self.fail("killed", f"{self.name} {how} {self.place} ({why})", stack or None)

    def crash(self) -> tuple[str, str]:
        """The signal that the rank brought on itself and its stacks, as faulthandler wrote them; or nothing."""
        written = os.pread(self.stack, os.fstat(self.stack).st_size, 0).decode(errors="replace")
        what, stack = (re.findall(r"Fatal Python error: (.+)\s+([\s\S]*)", written) or [("", "")])[-1]
        return what + CRASHES.get(what, ""), stack

    def hangs(self) -> bool:
        """No progress for `timeout` seconds: end the rank, unless it only waits for others that get on."""
        stopped = process_state(self.rank_pid) == "T"
        stack = self.dump()
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
            why = f"waits for the other ranks, and none of them says why ({self.doubt()})"
        else:
            why = "is stopped by a signal" if stopped else "hangs outside of any collective"
        if stopped:
            self.kill(signal.SIGCONT)  # it dumps its stack before it does anything else
            stack = self.dump()
        self.kill()
        if not self.fail("hung", f"{self.name} {why}: no progress for {self.patience:.0f} s {self.place}", stack):
            self.repeat(self.state["error"])
        return True

    def others(self) -> list[tuple]:
        """How far each of the other ranks is."""
        return [(s.get("step"), s.get("phase"), s.get("since")) for s in self.states()]

    def states(self) -> list[dict]:
        """What the guards of the other ranks wrote."""
        others = [r for r in range(self.state["world_size"]) if r != self.state["rank"]] if self.folder else []
        return [read(self.file(r)) or {} for r in others]

    def doubt(self) -> str:
        hosts = sorted({s["host"] for s in self.states() if "host" in s} - {self.state["host"]})
        return f"is the network to {', '.join(hosts)} there?" if hosts else "is the network between the hosts there?"

    def obey(self, stack: str | None = None) -> bool:
        """A rank has failed: this one ends too, by force unless it does so by itself. It may be the one: then it says why, and
        tells its guard first. Returns whether it was ended.
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
        error = f"ended because rank {(read(self.failed) or {}).get('rank')} failed"
        self.state.update(state="killed", error=error, traceback=stack)
        self.repeat(error)
        self.write(now=True)
        return True

    def repeat(self, otherwise: str) -> None:
        """Rank 0 says what the first to fail said, whose words may be lost with its host."""
        if self.state["rank"] == 0:
            print(f"error: {(read(self.failed) or {}).get('error', otherwise)}", file=sys.stderr, flush=True)

    def fail(self, state: str, error: str, stack: str | None = None) -> bool:
        """Returns whether this is the first failure of the run."""
        self.state.update(state=state, error=error, traceback=stack)
        first = self.claim(error)
        self.write(now=True)
        if first:
            self.note(error, stack)
            self.wait_for_others()
            print(f"{stack or ''}\nerror: {error}\n{self.advice}", file=sys.stderr, flush=True)
        return first

    def wait_for_others(self) -> None:
        """So that the report is the last that the user sees."""
        end = time.monotonic() + LAST_WORD
        others = [r for r in range(self.state["world_size"]) if r != self.state["rank"]] if self.folder else []
        while others and time.monotonic() < end:
            others = [r for r in others if (read(self.file(r)) or {}).get("state") in ("starting", "running")]
            time.sleep(TICK)

    def note(self, error: str, stack: str | None) -> None:
        if self.folder is None:
            return
        try:
            with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
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
        return f"the same command goes on from the newest checkpoint in {self.folder}" if self.folder else ""

    def kill(self, number: int = signal.SIGKILL) -> None:
        if os.getppid() == self.rank_pid:  # else the number may be another process's by now
            os.kill(self.rank_pid, number)

    def dump(self) -> str:
        """The rank's stacks; empty if it does not answer."""
        before = os.fstat(self.stack).st_size
        self.kill(signal.SIGUSR2)
        end = time.monotonic() + 1
        while time.monotonic() < end and os.fstat(self.stack).st_size == before:
            time.sleep(0.05)
        time.sleep(0.05)  # it may still be writing
        return os.pread(self.stack, 1 << 16, before).decode(errors="replace")


def process_state(pid: int) -> str:
    """R, S, D, T (stopped), … or "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def oom_kills() -> int:
    """Processes of this one's cgroup that the kernel killed for memory."""
    kills = 0
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            file = {"": "memory.events", "memory": "memory.oom_control"}.get(controllers)  # of cgroups version 2 and 1
            if file and (events := Path(f"/sys/fs/cgroup/{controllers}{group}/{file}")).exists():
                words = events.read_text().split()
                kills += int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        pass
    return kills


def read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_aside(path: Path, values: dict) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(values, ensure_ascii=False))
    aside.replace(path)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # launchers signal whole process groups; the rank's end is this one's
    about, timeout, stack, waiting = map(json.loads, sys.argv[1:])
    Guard(about, timeout, stack, WaitingCode(*waiting)).run()
