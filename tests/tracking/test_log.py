import logging
import re
import subprocess
import sys
import textwrap
import warnings

import pytest

from cromic_ds.tracking.log import FILE_ONLY, at_step, remove_handlers, setup_logging

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
ours = logging.getLogger("cromic_ds.some.module")


@pytest.fixture(autouse=True)
def _put_logging_back():
    root, ours_root = logging.getLogger(), logging.getLogger("cromic_ds")
    noisy = [logging.getLogger(name) for name in ("DeepSpeed", "transformers", "torch")]
    levels = {logger: logger.level for logger in (root, ours_root, *noisy)}
    yield
    remove_handlers()
    for logger in (root, *noisy):
        logger.filters.clear()
    for logger, level in levels.items():
        logger.setLevel(level)
    logging.captureWarnings(False)


def test_rank_0_to_stderr_and_log_txt(tmp_path, capsys):
    setup_logging(tmp_path, 0, 4, "node-1")
    ours.info("hello %d", 1)
    ours.debug("too small")
    logging.getLogger("somebody.else").info("not ours")
    logging.getLogger("somebody.else").warning("careful")
    text = (tmp_path / "log.txt").read_text()
    expected = rf"{LINE}INFO \[rank 0/4 node-1\] hello 1\n{LINE}WARNING \[rank 0/4 node-1\] careful\n"
    assert re.fullmatch(expected, text)
    assert capsys.readouterr().err == text


def test_lines_say_how_many_steps_are_done(tmp_path):
    setup_logging(tmp_path, 1, 2, "node-2")
    at_step(12)
    ours.warning("in training")
    at_step(None)
    ours.warning("after it")
    text = (tmp_path / "logs" / "rank-00001.txt").read_text()
    assert re.fullmatch(
        rf"{LINE}WARNING \[rank 1/2 node-2 step 12\] in training\n{LINE}WARNING \[rank 1/2 node-2\] after it\n", text
    )


def test_log_txt_is_appended_to_and_a_second_setup_replaces_the_first(tmp_path, capsys):
    for k in range(2):
        setup_logging(tmp_path, 0, 1)
        ours.info("message %d", k)
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["0", "1"]
    assert capsys.readouterr().err.count("message 1") == 1


def test_other_ranks_write_only_warnings_and_only_to_their_file(tmp_path, capsys):
    setup_logging(tmp_path, 1, 2)
    ours.info("fine")
    assert not (tmp_path / "logs").exists()
    ours.warning("unreadable record")
    warnings.warn("by Python", UserWarning, stacklevel=1)
    text = (tmp_path / "logs" / "rank-00001.txt").read_text()
    assert re.match(rf"{LINE}WARNING \[rank 1/2\] unreadable record\n", text)
    assert "UserWarning: by Python" in text
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "log.txt").exists()


def test_other_ranks_are_silent_without_a_run_folder(capsys):
    setup_logging(None, 1, 2)
    ours.warning("nobody hears it")
    assert capsys.readouterr().err == ""


def test_file_only_records_stay_off_the_terminal(tmp_path, capsys):
    setup_logging(tmp_path)
    ours.info("dense line", extra={FILE_ONLY: True})
    assert "dense line" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().err == ""


def test_libraries_that_print_by_themselves(tmp_path):
    """As DeepSpeed does on import, after our set-up: own handler, level INFO, nothing passed on."""
    program = """
        import logging, pathlib, sys
        from cromic_ds.tracking.log import setup_logging
        setup_logging(pathlib.Path(sys.argv[1]))
        library = logging.getLogger("DeepSpeed")
        library.setLevel(logging.INFO)
        library.propagate = False
        library.addHandler(logging.StreamHandler(sys.stdout))
        library.info("inner workings")
        library.warning("a warning")
        logging.getLogger("torch.distributed").info("inner workings")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "a warning\n"
    assert (tmp_path / "log.txt").read_text().endswith("WARNING [rank 0/1] a warning\n")
    assert "inner" not in done.stderr
