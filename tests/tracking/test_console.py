import io
import logging
import re
import sys

import pytest

from cromic_ds.tracking.console import ConsoleTracker
from cromic_ds.tracking.log import FILE_ONLY, remove_handlers, setup_logging

VALUES = {
    "loss": 2.5,
    "perplexity": 12.18249,
    "lr": 1e-4,
    "grad_norm": 0.75,
    "posts_per_second": 3.21,
    "tokens_per_second": 1234.5,
    "data_wait": 0.0123,
    "memory_gb": 1.5,
    "skipped_steps": 0,
    "skipped_records": 2,
    "seconds_left": 3725.2,
    "unknown": 1,
}


@pytest.fixture
def records():
    """What the console tracker logs, in order."""
    logger = logging.getLogger("cromic_ds.tracking.console")
    handler, kept = logging.Handler(), []
    handler.emit = kept.append
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield kept
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_one_dense_line_every_log_every_steps_and_at_both_ends(records):
    console = ConsoleTracker("lines", total_steps=25, log_every=10)
    for step in range(1, 26):
        console.log(step, VALUES, "train")
    console.finish()
    lines = [r.getMessage() for r in records]
    assert [line.split()[1] for line in lines] == ["1/25", "10/25", "20/25", "25/25"]
    assert lines[1] == (
        "step 10/25  loss 2.5000  ppl 12.18  lr 1.00e-04  grad 0.750  3.2 posts/s  1234 tok/s  "
        "data 1.2%  mem 1.50 GB  skipped records 2  left 1:02:05"
    )
    assert not any(getattr(r, FILE_ONLY) for r in records)


def test_evaluations_are_shown_whenever_they_come(records):
    ConsoleTracker("lines", total_steps=25, log_every=10).log(
        7, {"perplexity": 9.87654, "tokenization": "char"}, "eval"
    )
    assert records[0].getMessage() == "eval after step 7/25  perplexity 9.877  tokenization char"


def test_auto_is_lines_where_stderr_is_no_terminal(records, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    ConsoleTracker("auto", total_steps=2, log_every=1).log(1, {"loss": float("nan")}, "train")
    assert records[0].getMessage() == "step 1/2  loss nan"
    assert not getattr(records[0], FILE_ONLY)


def open_terminal(monkeypatch) -> io.StringIO:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return terminal


def test_auto_is_a_bar_on_a_terminal_and_the_lines_go_to_the_file(records, monkeypatch):
    terminal = open_terminal(monkeypatch)
    console = ConsoleTracker("auto", total_steps=20, log_every=5, resume_step=10)
    for step in range(11, 21):
        console.log(step, VALUES, "train")
    console.log(20, {"perplexity": 2.0}, "eval")
    console.finish()
    assert "20/20" in terminal.getvalue() and "loss 2.5000" in terminal.getvalue()
    assert [(r.getMessage().split("  ")[0], getattr(r, FILE_ONLY)) for r in records] == [
        ("step 11/20", True),
        ("step 15/20", True),
        ("step 20/20", True),
        ("eval after step 20/20", False),
    ]


def test_log_lines_appear_above_the_bar(monkeypatch, tmp_path):
    """Every line is complete, and the bar is below the last one; the log file has no bar."""
    terminal = open_terminal(monkeypatch)
    setup_logging(tmp_path)
    try:
        console = ConsoleTracker("auto", total_steps=3, log_every=1)
        for step in (1, 2, 3):
            console.log(step, {"loss": 0.5}, "train")
            logging.getLogger("cromic_ds.test").info("message %d " + "x" * 150, step)
        print("written by a library", file=sys.stderr)
        console.finish()
        console.finish()
        assert sys.stderr is terminal
    finally:
        remove_handlers()
    *lines, bar, end = shown(terminal.getvalue())
    assert [line.split("] ")[1] for line in lines[:3]] == [f"message {step} " + "x" * 150 for step in (1, 2, 3)]
    assert lines[3:] == ["written by a library"]
    assert bar.startswith("step 3/3") and "loss 0.5000" in bar and end == ""
    assert "\x1b" not in (tmp_path / "log.txt").read_text()


def shown(written: str) -> list[str]:
    """Return the lines of a terminal after this output: carriage returns, and erasing and moving up by whole lines."""
    lines, row = [""], 0
    for part in re.split(r"(\n|\r|\x1b\[[\d;?]*[A-Za-z])", written):
        if part == "\n":
            row += 1
            lines += [""] * (row >= len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line.rstrip() for line in lines]


def test_a_dumb_terminal_gets_lines(records, monkeypatch):
    open_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    ConsoleTracker("auto", total_steps=2, log_every=1).log(1, {"loss": 1.0}, "train")
    assert not getattr(records[0], FILE_ONLY)


def test_off_keeps_the_terminal_quiet(records):
    console = ConsoleTracker("off", total_steps=2, log_every=1)
    console.log(1, VALUES, "train")
    console.log(1, VALUES, "eval")
    assert [getattr(r, FILE_ONLY) for r in records] == [True, True]
