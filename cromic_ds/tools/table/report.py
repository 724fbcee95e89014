"""The report on the evaluations done so far, as Markdown, as JSON and as a chart."""

import statistics
from collections import defaultdict
from typing import Any

from cromic_ds.files import write_atomically, write_json
from cromic_ds.tasks import TASKS
from cromic_ds.tools.display import duration
from cromic_ds.tools.table.folder import JobState, JobStates, TableFolder, in_state
from cromic_ds.tools.table.plan import TableJob
from cromic_ds.tools.table.settings import TABLE_SCORES, TABLE_TASKS, TableSettings

MODEL_LABELS = {"cmt": "CroMIC-CMT", "vlp": "Unified VLP", "vilt": "ViLT"}
INTERPRETED = ("vlp", "vilt")
COMMENTS_COLUMN = {"pretrained": "with comments", "scratch": "without"}
GROUNDED = {task.name: {"grounded": ""} for task in TABLE_TASKS}
MISSING = "–"


def write_table_report(folder: TableFolder, settings: TableSettings) -> dict[str, Any]:
    """Write results.json, results.md and results.png; return the content of the first."""
    from cromic_ds.tools.table.chart import draw_table

    result = summarize_table(folder, settings)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.path / "results.json", result, indent=1)
    write_atomically(folder.path / "results.md", markdown(result))
    draw_table(result, folder.path / "results.png")
    return result


def summarize_table(folder: TableFolder, settings: TableSettings) -> dict[str, Any]:
    """Return all numbers of the table, and what they were measured on.

    Each of the `rows` has model, start, and `cells` by task, each with a `status` and `scores` by name: mean and standard
    deviation (of a sample, n - 1; null with one seed) over the seeds that are evaluated, and each seed's value.
    """
    states = folder.states()
    done, skipped = in_state(states, "done"), folder.skipped(states)
    failures = {id: state.reason for id, state in states.items() if state and state.state == "failed"}
    evaluations = [job for job in folder.jobs if job.stage == "evaluate"]
    rows = []
    for row in settings.models:
        for start in settings.starts:
            cells = {}
            for task in settings.tasks:
                jobs = [job for job in evaluations if (job.model, job.task, job.start) == (row, task, start)]
                by_seed = {job.seed: state for job in jobs if (state := states[job.id]) and job.id in done}
                failed = any(job.id in skipped or job.id in failures for job in jobs)
                cells[task] = _cell(by_seed, "failed" if failed else "waiting")
            kind = settings.kind_of(row)
            label = MODEL_LABELS.get(kind, kind) + ("" if row == kind else f" {row}")  # kinds can have several rows
            rows.append({"model": row, "label": label, "start": start, "cells": cells})
    data: dict[str, Any] = {"source": settings.data.source}
    if settings.data.source == "sample":
        data |= {name: value for name, value in vars(settings.data).items() if name.startswith("sample_")}
    return {
        "rows": rows,
        "tasks": [task.name for task in TABLE_TASKS if task.name in settings.tasks],
        "seeds": settings.seeds,
        "evaluated": {task: _ways(evaluations, states, task) for task in settings.tasks},
        "data": data,
        "interpreted": [row for row in settings.models if settings.kind_of(row) in INTERPRETED],
        "jobs": {
            "total": len(folder.jobs),
            "done": len(done),
            "failed": len(failures),
            "evaluations": len(evaluations),
            "evaluated": sum(job.id in done for job in evaluations),
            "seconds": sum(state.seconds for state in states.values() if state),
        },
        "published": settings.published,
        "failed": failures,
        "recipe": settings.recipe(),
    }


def _cell(by_seed: dict[int, JobState], otherwise: str) -> dict[str, Any]:
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for seed, state in by_seed.items():
        for name, value in state.result["scores"].items():
            values[name][seed] = value
    scores = {}
    for name, seeds in values.items():
        std = statistics.stdev(seeds.values()) if len(seeds) > 1 else None
        scores[name] = {"mean": statistics.mean(seeds.values()), "std": std, "seeds": seeds}
    return {"status": "done" if by_seed else otherwise, "seeds": list(by_seed), "scores": scores}


def _ways(evaluations: list[TableJob], states: JobStates, task: str) -> list[dict[str, Any]]:
    """Return the different ways (usually one) in which a task's cells were scored."""
    found: list[dict[str, Any]] = []
    for job in evaluations:
        if job.task == task and (state := states[job.id]) and state.state == "done":
            result = state.result
            way = {"split": result["split"], "items": result["counts"].get("items")}
            way |= {"tokenization": result["tokenization"], "beams": (result["decoding"] or {}).get("beams")}
            if way not in found:
                found.append(way)
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return the report as Markdown; all scores are × 100."""
    jobs, n_seeds = result["jobs"], len(result["seeds"])
    over = "one seed" if n_seeds == 1 else f"mean ± standard deviation over {n_seeds} seeds"
    lines = ["# Results", ""]
    lines += [f"Scores × 100, {over}; {jobs['evaluated']} of {jobs['evaluations']} evaluations done.", ""]
    lines += [*_table(result, TABLE_SCORES), *_published(result)]
    if any("grounded" in cell["scores"] for row in result["rows"] for cell in row["cells"].values()):
        lines += ["", "Answers and captions that name what the picture shows (grounded accuracy):", ""]
        lines += _table(result, GROUNDED)
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(result)), ""])


def _columns(result: dict[str, Any], scores: dict[str, dict[str, str]]) -> list[tuple[str, str, str]]:
    """Return task, score and title of each column."""
    pairs = [(task, score, short) for task in result["tasks"] for score, short in scores[task].items()]
    return [(task, score, f"{TASKS[task].title} {short}".strip()) for task, score, short in pairs]


def _published(result: dict[str, Any]) -> list[str]:
    """Return rows with the numbers that others published, in the same columns."""
    lines = []
    for name, by_task in result["published"].items():
        values = [by_task.get(task, {}).get(score) for task, score, _ in _columns(result, TABLE_SCORES)]
        cells = [MISSING if value is None else f"{value:.1f}" for value in values]
        lines.append("| " + " | ".join([f"*{name}*", "*published*", *cells]) + " |")
    return lines


def _table(result: dict[str, Any], scores: dict[str, dict[str, str]]) -> list[str]:
    columns = _columns(result, scores)
    lines = ["| Model | Comments | " + " | ".join(title for _, _, title in columns) + " |"]
    lines.append("|---|---|" + "---:|" * len(columns))
    for row in result["rows"]:
        name = row["label"] + (" (our interpretation)" if row["model"] in result["interpreted"] else "")
        cells = [_text(row["cells"][task], score, len(result["seeds"])) for task, score, _ in columns]
        lines.append("| " + " | ".join([name, COMMENTS_COLUMN[row["start"]], *cells]) + " |")
    return lines


def _text(cell: dict[str, Any], score: str, n_seeds: int) -> str:
    found = cell["scores"].get(score)
    if found is None:
        return "failed" if cell["status"] == "failed" else MISSING
    text = f"{100 * found['mean']:.1f}" + (f" ± {100 * found['std']:.1f}" if found["std"] is not None else "")
    return text if len(found["seeds"]) == n_seeds else f"{text} ({len(found['seeds'])} of {n_seeds} seeds)"


def _notes(result: dict[str, Any]) -> list[str]:
    notes = ["With comments: pretrained on posts' comments, then fine-tuned on the task. Without: fine-tuned alone."]
    tasks = result["tasks"]
    if any("cider" in TABLE_SCORES[task] for task in tasks):
        notes.append("C: CIDEr, B@4: BLEU-4, R: ROUGE-L, over the whole split and on text.")
    notes += [TASKS[task].table_note for task in tasks if TASKS[task].table_note]
    if result["interpreted"]:
        names = dict.fromkeys(row["label"] for row in result["rows"] if row["model"] in result["interpreted"])
        changed = f"What the paper changed in {' and '.join(names)}"
        notes.append(f"{changed} is not public: their rows are our interpretation.")
    if result["published"]:
        notes.append("Published: as given in the recipe, measured by others on their own data and models.")
    ways = [f"{TASKS[task].title} {_way(way)}" for task in tasks for way in result["evaluated"][task]]
    if ways:
        notes.append(f"Scored on: {'; '.join(ways)}.")
    data, jobs = result["data"], result["jobs"]
    if data["source"] == "real":
        notes.append("Data: the tasks' official files.")
    else:
        notes.append(
            f"Data: the sample world (seed {data['sample_seed']}), {data['sample_posts']:,} posts with comments and "
            f"{data['sample_pictures']:,} labeled training pictures a task."
        )
    notes.append(f"Jobs: {jobs['done']} of {jobs['total']} done, {duration(jobs['seconds'])} in all.")
    notes += [f"Failed: {id} ({reason})." for id, reason in result["failed"].items()]
    return notes


def _way(way: dict[str, Any]) -> str:
    beams = f", {way['beams']} beams" if way["beams"] and way["beams"] > 1 else ", greedy" if way["beams"] else ""
    tokens = f", by {way['tokenization']}" if way["tokenization"] in ("char", "jieba", "bert") else ""
    return f"{way['split']} ({way['items']:,} items{tokens}{beams})"
