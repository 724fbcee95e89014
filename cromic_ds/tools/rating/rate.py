"""Rate answers by people who do not know who wrote them (FM-IQA's PassRate): a local web page, and its report."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cromic_ds.data.dataset import Dataset
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError
from cromic_ds.tools.rating import sheet
from cromic_ds.tools.rating.judgments import FILE_NAME, Judgments
from cromic_ds.tools.rating.report import write_report


@dataclass
class RateSettings:
    """The sheet, where it is served, and the folder that holds it with its judgments."""

    out: str = ""
    """Folder of the rating. Where it holds one, the same settings, or none but this, continue it."""
    predictions: list[str] = field(default_factory=list)
    """Predictions files, one for each system: FILE, named as the file without extension, or NAME=FILE."""
    data: str = ""
    """Store with the pictures, questions and people's answers."""
    split: str = "val"
    """Split that the predictions are of."""
    count: int = 100
    """Questions drawn at random; 0 = all. Each is judged once for every system and once for the people's answer."""
    seed: int = 0
    """Seed of the questions and their order."""
    host: str = "127.0.0.1"
    """Address to listen on; another than this machine's own opens the page to whoever can reach it."""
    port: int = 8765
    """Port to listen on; 0 = a free one."""
    report: bool = False
    """Do not serve: print the results so far, write them to OUT/report.json and draw them in OUT/report.png."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if not self.out:
            raise UserError("out is missing: give the folder that is to hold the judgments")
        if self.count < 0:
            raise UserError(f"count is {self.count}: it must be at least 0 (all)")
        if not 0 <= self.port <= 65_535:
            raise UserError(f"port is {self.port}: it must be between 0 (any) and 65535")


def rate(settings: RateSettings) -> None:
    """`cromic-ds rate`: serve the page until interrupted, or report. Raises UserError."""
    settings.check()
    file = Path(settings.out) / FILE_NAME
    if settings.report:
        if not file.is_file():
            raise UserError(f"{settings.out}: no rating in it; `cromic-ds rate --predictions …` starts one")
        write_report(Judgments(file), file.parent)
        return
    judgments, dataset = continue_rating(file, settings) if file.is_file() else start_rating(file, settings)
    serve(judgments, dataset, settings)


def start_rating(file: Path, settings: RateSettings) -> tuple[Judgments, Dataset]:
    """Draw a sheet and store it."""
    if not settings.data:
        raise UserError("data is missing: give the store with the pictures and the people's answers")
    systems = sheet.parse_systems(settings.predictions)
    dataset = open_dataset(settings.data, settings.split)
    questions, passed_over = sheet.draw_questions(dataset, settings.count, settings.seed)
    task = dataset.task or "fmiqa"
    answers = {name: sheet.read_answers(path, task, questions, len(dataset)) for name, path in systems.items()}
    for reason, n in passed_over.most_common():
        print(f"passed over: {n:,} records ({reason})")
    about = sheet.describe(dataset, settings.data, systems, settings.count, settings.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    return Judgments.create(file, about, sheet.arrange(questions, answers, settings.seed)), dataset


def continue_rating(file: Path, settings: RateSettings) -> tuple[Judgments, Dataset]:
    """The rating that the folder holds, with its data. Raises UserError where the settings ask for another."""
    judgments = Judgments(file)
    about = judgments.about
    asked = bool(settings.predictions or settings.data)
    data, split = (settings.data, settings.split) if asked else (about["data"]["path"], about["data"]["split"])
    if not data:
        raise UserError("data is missing: give the store as well, or neither that nor predictions to continue")
    dataset = open_dataset(data, split)
    if asked:
        systems = sheet.parse_systems(settings.predictions)
        wanted = sheet.describe(dataset, data, systems, settings.count, settings.seed)
        # The same store may have been moved.
        different = [name for name in ("count", "seed", "systems") if wanted[name] != about[name]]
        if different:
            raise UserError(f"{file}: holds a sheet with another {' and '.join(different)}; choose another --out")
    if dataset.fingerprint != about["data"]["fingerprint"]:
        raise UserError(f"{data}, split {split!r}: not the data that {file} was drawn from; choose another --out")
    return judgments, dataset


def serve(judgments: Judgments, dataset: Dataset, settings: RateSettings) -> None:
    """Listen until interrupted. Everything is stored as it comes in, so nothing is left to do at the end."""
    from cromic_ds.tools.rating.server import address, is_loopback, listen, make_app, make_threaded_server

    one_at_a_time = threading.Lock()  # a data set's cache of open files is not made for threads

    def picture(record: int) -> bytes | None:
        with one_at_a_time:
            return dataset.image(record)

    bound = listen(settings.host, settings.port)
    host, port = bound.getsockname()[:2]
    server = make_threaded_server(make_app(judgments, picture, settings.host), bound)
    if not is_loopback(host):
        print(
            f"warning: --host {settings.host} lets everyone who can reach this machine see the pictures and rate under "
            "any name",
            file=sys.stderr,
        )
    systems = ", ".join(judgments.about["systems"])
    print(f"{judgments.n_items:,} answers to judge, of {sheet.HUMAN} and {systems}; judgments in {judgments.path}")
    with suppress(KeyboardInterrupt):  # which the server takes for itself once it serves
        print(f"rate at {address(host, port)} (Ctrl-C stops; the same command continues)", flush=True)
        server.serve_forever()
    server.server_close()
    bound.close()
    print(f"stopped; `cromic-ds rate --out {settings.out} --report` shows the results")
