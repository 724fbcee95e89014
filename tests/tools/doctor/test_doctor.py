"""`cromic-ds doctor`: a healthy machine passes, and each broken thing is one line that names it."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch
from helpers.paths import REPOSITORY

from cromic_ds.errors import UserError
from cromic_ds.tools.doctor import look, software
from cromic_ds.tools.doctor.checks import Check, HostReport
from cromic_ds.tools.doctor.command import DoctorSettings, doctor
from cromic_ds.tools.doctor.hosts import compare_hosts, read_hostfile

COMPILED = os.environ.get("TORCH_EXTENSIONS_DIR", str(REPOSITORY / ".cache" / "torch_extensions"))


@pytest.fixture
def diagnose(capsys, monkeypatch):
    """diagnose(data=…, out=…): (exit code, the JSON that is printed)."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", os.environ.get("TORCH_EXTENSIONS_DIR", COMPILED))

    def run(**settings) -> tuple[int, dict]:
        capsys.readouterr()
        code = 0
        try:
            doctor(DoctorSettings(json=True, **settings))
        except SystemExit as end:
            code = int(end.code)
        return code, json.loads(capsys.readouterr().out)

    return run


def found(answer: dict, name: str) -> str:
    return next(check["found"] for check in answer["checks"] if check["name"] == name)


def test_a_working_installation_has_nothing_that_would_stop_a_run(diagnose, store, tmp_path):
    code, answer = diagnose(data=str(store), out=str(tmp_path / "run"))
    assert (code, answer["stops"]) == (0, [])
    assert found(answer, "torch") == torch.__version__
    assert found(answer, "layer norm") == ("torch" if answer["device"] == "cpu" else found(answer, "layer norm"))
    assert answer["slots"] == (torch.cuda.device_count() or len(os.sched_getaffinity(0)))
    assert found(answer, str(store)) == "train 54 posts, val 10 posts"
    assert list(tmp_path.iterdir()) == []  # looking changes nothing


def test_the_tables_say_the_same(capsys, monkeypatch, store):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-forty-characters-abcdefghijk")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", COMPILED)
    doctor(DoctorSettings(data=str(store)))
    shown = capsys.readouterr().out
    assert "Nothing found that would stop a run." in shown
    assert "online (a login was" in shown
    assert "a-secret" not in shown


def test_an_installation_without_its_recipes_is_not_reassuring(diagnose, monkeypatch, tmp_path):
    assert found(diagnose()[1], "recipes").endswith(str(REPOSITORY / "recipes"))
    monkeypatch.setattr(software, "shipped", lambda name: tmp_path / name)
    code, answer = diagnose()
    configs, recipes = answer["stops"]
    assert code == 1
    assert f"there are no ds_configs in {tmp_path / 'ds_configs'}: the installation is incomplete" in configs
    assert f"there are no recipes in {tmp_path / 'recipes'}" in recipes


def test_a_launcher_that_is_not_on_the_path_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "deepspeed" in software.check_launcher().warns
    (tmp_path / "deepspeed").write_text("")
    (tmp_path / "deepspeed").chmod(0o755)
    assert (software.check_launcher().found, software.check_launcher().warns) == (str(tmp_path / "deepspeed"), "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU runs do not need the operation")
def test_an_operation_that_cannot_be_compiled(diagnose, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    assert diagnose()[1]["stops"] == []  # it will be compiled
    monkeypatch.setenv("PATH", str(tmp_path))
    code, answer = diagnose()
    assert code == 1
    assert answer["stops"] == [
        f"{socket.gethostname()}: DeepSpeed's CPU operation is not compiled yet, which needs C++ compiler and ninja: "
        "install g++ and ninja"
    ]


def test_the_operation_has_deepspeeds_name():
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    assert software.OPERATION == ShareMemCommBuilder.NAME


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU runs do not need the operation")
def test_the_lock_of_a_killed_compilation(diagnose, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    assert diagnose()[1]["stops"] == []  # one that runs
    os.utime(lock, (time.time() - 3600,) * 2)
    (stop,) = diagnose()[1]["stops"]
    assert f"{lock} is 60 minutes old" in stop
    assert "remove it" in stop


def test_packages_that_are_missing_or_too_old(diagnose, monkeypatch):
    monkeypatch.setattr(
        metadata, "requires", lambda name: ["torch>=99", "no-such-package>=1.2", 'absent; extra == "dev"']
    )
    code, answer = diagnose()
    old, missing = answer["stops"]
    assert code == 1
    assert f"torch {torch.__version__} is installed and >=99 is needed" in old
    assert "the package no-such-package is missing: install no-such-package>=1.2" in missing


def test_a_library_that_fails_to_import_is_a_line_and_no_traceback(tmp_path):
    (tmp_path / "transformers.py").write_text("raise RuntimeError('operator torchvision::nms\\ndoes not exist')")
    command = [sys.executable, "-m", "cromic_ds", "doctor", "--json", "true"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "WANDB_MODE": "offline"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (stop,) = json.loads(done.stdout)["stops"]
    assert "transformers cannot be imported: RuntimeError: operator torchvision::nms does not exist" in stop


def run_folder(tmp_path: Path, what: str) -> Path:
    folder = tmp_path / what
    if what == "below a file":
        folder.write_text("")
        return folder / "run"
    folder.mkdir()
    if what == "something else":
        (folder / "thesis.tex").write_text("")
    if what == "a run":
        (folder / "config.yaml").write_text("seed: 0")
        (folder / "checkpoints" / "step-00000020").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("what", "says"), [("below a file", "is no folder: name another one"), ("something else", "and contains no run")]
)
def test_run_folders_that_cannot_be_used(diagnose, tmp_path, what, says):
    code, answer = diagnose(out=str(run_folder(tmp_path, what)))
    assert code == 1
    assert says in answer["stops"][0]


@pytest.mark.parametrize(("what", "says"), [("nothing yet", "empty"), ("a run", "resumes from step-00000020")])
def test_run_folders_that_can_be_used(diagnose, tmp_path, what, says):
    out = run_folder(tmp_path, what)
    code, answer = diagnose(out=str(out))
    assert code == 0
    assert says in found(answer, str(out))


def test_a_store_that_is_not_there(diagnose):
    code, answer = diagnose(data="nowhere")
    assert code == 1
    assert "nowhere: no such data set" in answer["stops"][0]


def test_too_little_shared_memory_and_disk(diagnose, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000_000))
    code, answer = diagnose()
    if answer["device"] == "cpu":
        assert (code, len(answer["stops"])) == (1, 1)
        assert "/dev/shm has 50 MB free, and DeepSpeed takes 69 for a CPU rank" in answer["stops"][0]
    assert any("only 0.1 GB are free" in line or "only 0.0 GB are free" in line for line in answer["warns"])


def test_a_slurm_that_does_not_answer_is_shown(tmp_path, monkeypatch):
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\necho 'sinfo: error: Unable to contact slurm controller' >&2; exit 1\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert look.check_slurm().found == "sinfo fails: sinfo: error: Unable to contact slurm controller"
    sinfo.write_text("#!/bin/sh\necho 'gpu* 2 × idle'\n")
    assert look.check_slurm().found == "gpu* 2 × idle"


# ---- hosts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node1\n", "line 1: 'node1': a line is `host slots=N`"),
        ("node1 slots=8\nnode2 slots=0\n", "line 2: 'node2 slots=0'"),
        ("node1 slots=8\n\nnode1 slots=4\n", "line 3: the host node1 is listed twice"),
        ("# none\n", "no hosts in it"),
    ],
)
def test_a_wrong_hostfile(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_hostfile(str(path))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_hostfile(tmp_path):
    (tmp_path / "hosts").write_text("# two\nnode1 slots=8  # the first\n\nuser@node2\tslots=4\n")
    assert read_hostfile(str(tmp_path / "hosts")) == {"node1": 8, "user@node2": 4}
    with pytest.raises(UserError, match="No such file"):
        read_hostfile(str(tmp_path / "none"))


def test_what_differs_between_hosts_is_a_line_that_names_the_host():
    versions = {"torch": "2.9", "code of cromic_ds": "a1"}
    good = HostReport("node1", [], "cuda", 8, versions)
    hosts = {
        "node1": good,
        "node2": dataclasses.replace(good, versions={"torch": "2.8", "code of cromic_ds": "a1"}),
        "node3": dataclasses.replace(good, slots=4),
        "node4": dataclasses.replace(good, device="cpu", slots=16),
        "node5": dataclasses.replace(good, checks=[Check("data", "s", "", stops="s: no such data set")]),
        "node6": "cannot be reached by ssh (Connection refused)",
    }
    stops, warns = compare_hosts(hosts, dict.fromkeys(hosts, 8))
    assert stops == [
        "node6: cannot be reached by ssh (Connection refused)",
        "node2: torch is 2.8 there and 2.9 on node1: install the same on all hosts",
        "node3: slots=8 and it has 4 GPUs: correct the hostfile",
        "node4: its ranks would run on cpu and those of node1 on cuda",
        "node5: s: no such data set",
    ]
    assert warns == []


@pytest.fixture
def ssh_server(tmp_path: Path, monkeypatch):
    """A real ssh server of this user's; `node1` is its name for pdsh and the doctor."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(sshd).exists():
        if os.environ.get("CI") == "true":
            pytest.fail("no sshd")
        pytest.skip("no sshd")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start as root without it
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\n"
    )
    (folder / "ssh_config").write_text(
        f"Host node1 stranger\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {folder}/known-%n\n LogLevel ERROR\n"
        f"Host node1\n IdentityFile {folder}/user\n StrictHostKeyChecking no\nHost stranger\n StrictHostKeyChecking yes\n"
    )
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", f"-F {folder}/ssh_config")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_hosts_are_asked_over_ssh(ssh_server, diagnose, tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / ".deepspeed_env").write_text(f"PATH={os.environ['PATH']}\nWANDB_MODE=offline; not a command\n")
    Path("hosts").write_text("node1 slots=999\nstranger slots=1\nnowhere.invalid slots=1\n")
    code, answer = diagnose(hostfile="hosts", data=str(store))
    assert code == 1
    node1 = answer["hosts"]["node1"]
    assert (node1["host"], node1["versions"]) == (socket.gethostname(), answer["versions"])
    assert found(node1, str(store)) == "train 54 posts, val 10 posts"
    assert found(node1, "W&B") == "offline; not a command"  # exactly as in the file
    said = {line.split(":")[0]: line for line in answer["stops"]}
    assert "Host key verification failed" in said["stranger"]
    assert "cannot be reached by ssh" in said["nowhere.invalid"]
    assert "node1: slots=999 and it has" in " ".join(answer["stops"] + answer["warns"])
