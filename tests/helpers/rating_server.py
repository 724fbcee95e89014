"""The command `rate` in a process of its own, and files of predictions for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from cromic_ds.tools.rating.rate import RateSettings
from helpers.paths import REPOSITORY

QUESTIONS = 12
SYSTEMS = ("alpha-system", "beta-system")
PROGRAM = "import json, sys; from cromic_ds.tools.rating.rate import *; rate(RateSettings(**json.loads(sys.argv[1])))"


def write_predictions(path: Path, name: str, ids: range = range(100, 100 + QUESTIONS + 2)) -> Path:
    entries = [{"question_id": id, "answer": f"{name[0].upper()}的回答{id - 100}"} for id in ids]
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return path


class Server:
    """Serves on loopback, on a free port where the settings say 0; ended with the `with` block at the latest."""

    def __init__(self, settings: RateSettings):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, as long as the server
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(asdict(settings))],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # A shell's background jobs, and all that they start, ignore Ctrl-C; here it is to be heard.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.greeting: list[str] = []
        while "rate at http" not in "".join(self.greeting[-1:]):
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(f"the server did not start: {self.greeting} {self.errors()}")
            self.greeting.append(line.rstrip("\n"))
        self.port = urlsplit(self.greeting[-1].split()[2]).port
        self.url = f"http://127.0.0.1:{self.port}/"

    def judge(self, place: dict, passed: bool, quality: int) -> dict:
        """Post a judgment of `place`; the next one."""
        body = {key: place[key] for key in ("rater", "sheet", "position")} | {"passed": passed, "quality": quality}
        headers = {"Content-Type": "application/json"}
        return json.load(urlopen(Request(f"{self.url}api/judge", json.dumps(body).encode(), headers)))

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def interrupt(self) -> str:
        """Ctrl-C; what it prints then."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=20)[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception) -> None:
        if self.process.poll() is None:
            self.kill()
        self.process.stdout.close()
        self._errors.close()
