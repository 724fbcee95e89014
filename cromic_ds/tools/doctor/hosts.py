"""The hosts of a hostfile: the doctor runs on each over ssh, as DeepSpeed's launcher would reach it, and they are compared."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from cromic_ds.errors import UserError
from cromic_ds.tools.doctor.checks import Check, HostReport

CONNECT_SECONDS = 5
ANSWER_SECONDS = 90  # on a busy host torch alone can take ten seconds to import


def read_hostfile(path: str) -> dict[str, int]:
    """Return the slots by host, from lines `host slots=N`; a `#` starts a comment. Raises UserError if the file cannot be
    read, or DeepSpeed would not accept a line of it."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--hostfile {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)", text)
        if not match:
            raise UserError(f"{path}: line {number}: {text!r}: a line is `host slots=N`, such as `node1 slots=8`")
        host = match[1]
        if host in slots:
            raise UserError(f"{path}: line {number}: the host {host} is listed twice; keep one line and add the slots")
        slots[host] = int(match[2])
    if not slots:
        raise UserError(f"{path}: there are no hosts in it; a line is `host slots=N`, such as `node1 slots=8`")
    return slots


def ask_host(host: str, data: str | None, out: str | None) -> HostReport | str:
    """Return the doctor's report of `host`, or why there is none. It is started as the launcher would start a rank: with this
    Python in this folder."""
    command = [sys.executable, "-m", "cromic_ds", "doctor", "--json", "true"]
    for name, value in (("--data", data), ("--out", out)):
        command += [name, value] if value else []
    # On standard input, because the values of .deepspeed_env should not appear in the list of processes.
    settings = [f"export {name}={shlex.quote(value)}" for name, value in launcher_environment().items()]
    script = "\n".join([*settings, f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(command)} </dev/null"])
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    ssh += shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))  # pdsh, which the launcher uses, gives these to ssh
    try:
        done = subprocess.run([*ssh, host, "sh"], input=script, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except FileNotFoundError:
        return "there is no ssh on this machine: install openssh-client"
    except subprocess.TimeoutExpired:
        return f"no answer in {ANSWER_SECONDS} s"
    for line in done.stdout.splitlines():
        if line.startswith('{"host": '):
            values = json.loads(line)
            values["checks"] = [Check(**check) for check in values["checks"]]
            return HostReport(**{name: values[name] for name in HostReport.__dataclass_fields__})
    said = ([text for text in done.stderr.splitlines() if text.strip()] or ["without output"])[-1]
    if done.returncode == 255:  # from ssh itself
        return f"cannot be reached by ssh ({said}): `ssh {host} true` must work without asking for anything"
    return f"cromic-ds does not run there ({said}): it must be installed at the same path, {sys.executable}, as here"


def launcher_environment() -> dict[str, str]:
    """Return the variables that DeepSpeed's launcher sets on every host: those of Python, and the lines of .deepspeed_env."""
    values = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    for folder in (Path.home(), Path.cwd()):
        path = folder / os.environ.get("DS_ENV_FILE", ".deepspeed_env")
        if path.is_file():
            lines = [line.partition("=") for line in path.read_text().splitlines() if "=" in line]
            values |= {name.strip(): value.strip() for name, _, value in lines}
    return values


def compare_hosts(hosts: dict[str, HostReport | str], slots: dict[str, int]) -> tuple[list[str], list[str]]:
    """Return (what would stop a run, what is worth a note) on the hosts; each line names its host."""
    stops = [f"{name}: {why}" for name, why in hosts.items() if isinstance(why, str)]
    warns: list[str] = []
    reports = {name: report for name, report in hosts.items() if isinstance(report, HostReport)}
    if not reports:
        return stops, warns
    first_name, first = next(iter(reports.items()))
    for name, report in reports.items():
        stops += [f"{name}: {check.stops}" for check in report.checks if check.stops]
        warns += [f"{name}: {check.warns}" for check in report.checks if check.warns]
        if not report.slots:
            continue
        has = f"{name}: slots={slots[name]} and it has {report.slots}"
        if report.device == "cuda" and slots[name] > report.slots:
            stops.append(f"{has} GPUs: correct the hostfile")
        elif slots[name] > report.slots:
            warns.append(f"{has} CPU cores: its ranks will wait for each other")
        if report.device != first.device:
            stops.append(f"{name}: its ranks would run on {report.device} and those of {first_name} on {first.device}")
        for what, version in first.versions.items():
            if (other := report.versions.get(what)) and other != version:
                differs = f"{what} is {other} there and {version} on {first_name}"
                stops.append(f"{name}: {differs}: install the same on all hosts")
    return stops, warns
