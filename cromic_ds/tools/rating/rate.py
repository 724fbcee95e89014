"""Let people rate answers without knowing who wrote them (FM-IQA's PassRate), on a local web page; and its report."""

from dataclasses import dataclass, field
from pathlib import Path

from cromic_ds.data.dataset import Dataset
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError
from cromic_ds.tools.rating import sheet
from cromic_ds.tools.rating.judgments import RATING_FILE, Judgments
from cromic_ds.tools.rating.report import write_rating_report


@dataclass
class RateSettings:
    """The sheet, where it is served, and the folder that contains it and its judgments."""

    out: str = ""
    """Folder of the rating. If it contains one, the same settings, or this one alone, resume it."""
    predictions: list[str] = field(default_factory=list)
    """Predictions files, one for each system: FILE, named after the file without extension, or NAME=FILE."""
    data: str = ""
    """Store with the pictures, the questions and the people's answers."""
    split: str = "val"
    """Split that the predictions are for."""
    count: int | None = 100
    """Number of questions, drawn at random; null = all. Each is judged once for every system and once for the people."""
    seed: int = 0
    """Seed of the questions and their order."""
    host: str = "127.0.0.1"
    """Address to listen on. With any other address, everyone who can reach this machine can open the page."""
    port: int | None = 8765
    """Port to listen on; null = a free one."""
    report: bool = False
    """Do not serve the page; print the results so far and write them to OUT/report.json and OUT/report.png."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if not self.out:
            raise UserError("out is missing: give the folder for the judgments")
        if self.count is not None and self.count < 1:
            raise UserError(f"count is {self.count}: it must be at least 1, or null for all")
        if self.port is not None and not 1 <= self.port <= 65_535:
            raise UserError(f"port is {self.port}: it must be between 1 and 65535, or null for a free one")


def rate(settings: RateSettings) -> None:
    """`cromic-ds rate`: serve the page until interrupted, or write the report. Raises UserError."""
    file = Path(settings.out) / RATING_FILE
    if settings.report:
        if not file.is_file():
            raise UserError(f"{settings.out}: no rating in it; `cromic-ds rate --predictions …` starts one")
        write_rating_report(Judgments(file), file.parent)
        return
    from cromic_ds.tools.rating.server import serve

    judgments, dataset = continue_rating(file, settings) if file.is_file() else start_rating(file, settings)
    serve(judgments, dataset, settings.host, settings.port or 0)
    print(f"stopped; `cromic-ds rate --out {settings.out} --report` shows the results")


def start_rating(file: Path, settings: RateSettings) -> tuple[Judgments, Dataset]:
    """Draw a sheet and write its file."""
    if not settings.data:
        raise UserError("data is missing: give the store with the pictures and the people's answers")
    systems = sheet.parse_systems(settings.predictions)
    dataset = open_dataset(settings.data, settings.split)
    questions, skipped = sheet.sample_questions(dataset, settings.count, settings.seed)
    task = dataset.task or "fmiqa"
    answers = {name: sheet.read_system_answers(path, task, questions, len(dataset)) for name, path in systems.items()}
    for reason, n in skipped.most_common():
        print(f"skipped: {n:,} records ({reason})")
    about = sheet.describe_sheet(dataset, settings.data, systems, settings.count, settings.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    return Judgments.create(file, about, sheet.arrange(questions, answers, settings.seed)), dataset


def continue_rating(file: Path, settings: RateSettings) -> tuple[Judgments, Dataset]:
    """Return the rating in the folder, and its data. Raises UserError if the settings are those of another rating."""
    judgments = Judgments(file)
    about = judgments.about
    asked = bool(settings.predictions or settings.data)
    data, split = (settings.data, settings.split) if asked else (about["data"]["path"], about["data"]["split"])
    if not data:
        raise UserError("data is missing: give the store as well, or neither that nor predictions to continue")
    dataset = open_dataset(data, split)
    if asked:
        systems = sheet.parse_systems(settings.predictions)
        wanted = sheet.describe_sheet(dataset, data, systems, settings.count, settings.seed)
        # The path is not compared, because the store may have been moved.
        different = [name for name in ("count", "seed", "systems") if wanted[name] != about[name]]
        if different:
            raise UserError(f"{file}: contains a sheet with another {' and '.join(different)}; choose another --out")
    if dataset.fingerprint != about["data"]["fingerprint"]:
        raise UserError(f"{data}, split {split!r}: not the data that {file} was drawn from; choose another --out")
    return judgments, dataset
