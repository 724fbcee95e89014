"""Check what is installed and usable here; print one line for each thing that would stop a run."""

import contextlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cromic_ds.tools.doctor.checks import HostReport
from cromic_ds.tools.doctor.hosts import ask_host, compare_hosts, read_hostfile
from cromic_ds.tools.doctor.look import look


@dataclass
class DoctorSettings:
    """What to check in addition to this machine."""

    data: str | None = None
    """Store folder that a run would read."""
    out: str | None = None
    """Run folder that a run would start or resume in."""
    hostfile: str | None = None
    """DeepSpeed hostfile: the same is checked over ssh on every host in it, and the hosts are compared."""
    json: bool = False
    """Print one JSON object instead of tables."""


def doctor(settings: DoctorSettings) -> None:
    """`cromic-ds doctor`: print what was found. Exits with 1 if something would stop a run. Raises UserError if the hostfile
    cannot be read."""
    slots = read_hostfile(settings.hostfile) if settings.hostfile else {}
    # Imported libraries must not print into the JSON. The hosts answer while this machine is checked.
    with contextlib.redirect_stdout(sys.stderr), ThreadPoolExecutor(max_workers=64) as pool:
        answers = pool.map(lambda host: ask_host(host, settings.data, settings.out), slots)
        here = look(settings.data, settings.out)
        hosts = dict(zip(slots, answers))
    stops, warns = compare_hosts(hosts, slots)
    stops += [f"{here.host}: {c.stops}" for c in here.checks if c.stops]
    warns += [f"{here.host}: {c.warns}" for c in here.checks if c.warns]
    if settings.json:
        others = {name: {"problem": r} if isinstance(r, str) else asdict(r) for name, r in hosts.items()}
        print(json.dumps({**asdict(here), "hosts": others, "stops": stops, "warns": warns}, ensure_ascii=False))
    else:
        print_report(here, hosts, slots, stops, warns)
    if stops:
        sys.exit(1)


def print_report(
    here: HostReport, hosts: dict[str, HostReport | str], slots: dict[str, int], stops: list[str], warns: list[str]
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
            mark = " [red]✗[/]" if check.stops else " [yellow]![/]" if check.warns else ""
            table.add_row(f"[bold]{first}[/]", escape(check.name), escape(check.found), escape(check.needed) + mark)
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


def uses(report: HostReport) -> str:
    if not report.slots:
        return "nothing: torch cannot be used"
    return f"{report.slots} {'GPU' if report.device == 'cuda' else 'CPU core'}{'s' if report.slots > 1 else ''}"
