"""`cromic-ds doctor`: what is installed and usable here, and one line for each thing that would stop a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cromic_ds.tools.doctor.hosts import ask, compare, read_hostfile
from cromic_ds.tools.doctor.look import Check, Report, look


@dataclass
class DoctorSettings:
    """What is looked at beside this machine."""

    data: str = ""
    """Store folder that a run would read; empty = none."""
    out: str = ""
    """Run folder that a run would write or go on in; empty = none."""
    hostfile: str = ""
    """DeepSpeed hostfile: every host in it is asked over ssh for the same, and compared with the others; empty = none."""
    json: bool = False
    """Print one JSON object instead of tables."""


def doctor(settings: DoctorSettings) -> None:
    """Print what was found; exit code 1 where something would stop a run. Raises UserError for an unreadable hostfile."""
    slots = read_hostfile(settings.hostfile) if settings.hostfile else {}
    # Libraries that are imported must not talk into the JSON; the hosts answer while this machine is looked at.
    with contextlib.redirect_stdout(sys.stderr), ThreadPoolExecutor(max_workers=64) as pool:
        answers = pool.map(lambda host: ask(host, settings.data, settings.out), slots)
        here = look(settings.data, settings.out)
        hosts = dict(zip(slots, answers))
    stops, warns = compare(hosts, slots)
    stops += [f"{here.host}: {c.stops}" for c in here.checks if c.stops]
    warns += [f"{here.host}: {c.warns}" for c in here.checks if c.warns]
    if settings.json:
        print(as_json(here, hosts, stops, warns))
    else:
        show(here, hosts, slots, stops, warns)
    if stops:
        sys.exit(1)


def as_json(here: Report, hosts: dict[str, Report | str], stops: list[str], warns: list[str]) -> str:
    def plain(report: Report | str):
        return {"problem": report} if isinstance(report, str) else dataclasses.asdict(report)

    others = {name: plain(report) for name, report in hosts.items()}
    return json.dumps({**plain(here), "hosts": others, "stops": stops, "warns": warns}, ensure_ascii=False)


def show(
    here: Report, hosts: dict[str, Report | str], slots: dict[str, int], stops: list[str], warns: list[str]
) -> None:
    console = Console(soft_wrap=True)
    columns = [Column(name, overflow="fold") for name in ("", "", "found", "needed for, or at least")]
    title = f"{here.host}: a run here uses {uses(here)}"
    table = Table(*columns, title=title, title_justify="left", box=None)
    section = None
    for check in here.checks:
        if check.needed or check.found or check.stops:
            first = check.section if check.section != section else ""
            section = check.section
            table.add_row(
                f"[bold]{first}[/]", escape(check.name), escape(check.found), escape(check.needed) + mark(check)
            )
    console.print(table)
    if hosts:
        others = Table("host", "slots", "has", title="Hosts", title_justify="left", box=None)
        for name, report in hosts.items():
            has = f"[red]{escape(report)}[/]" if isinstance(report, str) else escape(uses(report))
            others.add_row(escape(name), str(slots[name]), has)
        console.print(others)
    for line in warns:
        console.print(f"[yellow]note[/]: {escape(line)}", highlight=False)
    for line in stops:
        console.print(f"[bold red]stops a run[/]: {escape(line)}", highlight=False)
    if not stops:
        console.print("[green]Nothing found that would stop a run.[/]")


def mark(check: Check) -> str:
    return " [red]✗[/]" if check.stops else " [yellow]![/]" if check.warns else ""


def uses(report: Report) -> str:
    if not report.slots:
        return "nothing: torch cannot be used"
    return f"{report.slots} {'GPU' if report.device == 'cuda' else 'CPU core'}{'s' if report.slots > 1 else ''}"
