"""The table from what is evaluated so far: as Markdown, as JSON and as a picture."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from typing import Any

from cromic_ds.tasks import TASKS
from cromic_ds.tools.table.columns import SCORES, TASK_NAMES
from cromic_ds.tools.table.folder import Folder, State, write_aside
from cromic_ds.tools.table.progress import count, duration
from cromic_ds.tools.table.settings import TableSettings

LABELS = {"cmt": "CroMIC-CMT", "vlp": "Unified VLP", "vilt": "ViLT"}
INTERPRETED = ("vlp", "vilt")
STARTS = {"pretrained": "with comments", "scratch": "without"}
GROUNDED = {task: {"grounded": ""} for task in TASK_NAMES}
MISSING = "–"


def write_report(folder: Folder, settings: TableSettings) -> dict:
    """Write results.json, results.md and results.png; returns the first's content."""
    from cromic_ds.tools.table.chart import draw

    result = summarize(folder, settings)
    write_aside(folder.path / "results.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    write_aside(folder.path / "results.md", markdown(result))
    draw(result, folder.path / "results.png")
    return result


def summarize(folder: Folder, settings: TableSettings) -> dict:
    """All numbers of the table, and what they were measured on.

    `rows`: model, start, and `cells` by task: `status`, and the `scores` by name: mean and standard deviation (of a sample,
    n - 1; null with one seed) over the seeds that are evaluated, and each seed's value.
    """
    states = folder.states()
    skipped = folder.skipped(states)
    rows: dict[tuple[str, str], dict] = {}
    for row in settings.models:
        for start in settings.starts:
            rows[row, start] = {"model": row, "label": label(settings, row), "start": start, "cells": {}}
    evaluations = [job for job in folder.jobs if job.stage == "evaluate"]
    for (row, start), about in rows.items():
        for task in settings.tasks:
            jobs = [job for job in evaluations if (job.model, job.task, job.start) == (row, task, start)]
            of_seed = {job.seed: state for job in jobs if (state := states[job.id]) and state.state == "done"}
            failed = any(job.id in skipped or _failed(states[job.id]) for job in jobs)
            about["cells"][task] = _cell(of_seed, "failed" if failed else "waiting")
    return {
        "rows": list(rows.values()),
        "tasks": [task for task in TASK_NAMES if task in settings.tasks],
        "seeds": settings.seeds,
        "evaluated": {task: _measured(folder, states, task) for task in settings.tasks},
        "data": {"source": settings.data.source}
        | ({k: v for k, v in vars(settings.data).items() if k.startswith("sample_")} if _sampled(settings) else {}),
        "interpreted": [row for row in settings.models if settings.kind_of(row) in INTERPRETED],
        "jobs": {
            "total": len(folder.jobs),
            **{what: count(states, what) for what in ("done", "failed")},
            "evaluations": len(evaluations),
            "evaluated": sum(count({job.id: states[job.id]}, "done") for job in evaluations),
            "seconds": sum(state.seconds for state in states.values() if state),
        },
        "published": settings.published,
        "failed": {id: state.reason for id, state in states.items() if state and state.state == "failed"},
        "recipe": settings.recipe(),
    }


def label(settings: TableSettings, row: str) -> str:
    """A row's name as people read it; of a second row of the same model with its own name."""
    kind = settings.kind_of(row)
    name = LABELS.get(kind, kind)
    return name if row == kind else f"{name} {row}"


def _sampled(settings: TableSettings) -> bool:
    return settings.data.source == "sample"


def _failed(state: State | None) -> bool:
    return state is not None and state.state == "failed"


def _cell(of_seed: dict[int, State], otherwise: str) -> dict:
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for seed, state in of_seed.items():
        for name, value in state.result["scores"].items():
            values[name][seed] = value
    scores = {
        name: {
            "mean": statistics.mean(seeds.values()),
            "std": statistics.stdev(seeds.values()) if len(seeds) > 1 else None,
            "seeds": seeds,
        }
        for name, seeds in values.items()
    }
    return {"status": "done" if of_seed else otherwise, "seeds": list(of_seed), "scores": scores}


def _measured(folder: Folder, states: dict[str, State | None], task: str) -> list[dict]:
    """The different ways (one, as a rule) in which a task's cells were scored."""
    found: list[dict] = []
    for job in folder.jobs:
        state = states[job.id]
        if job.stage == "evaluate" and job.task == task and state and state.state == "done":
            of = state.result
            way = {"split": of["split"], "items": of["counts"].get("items"), "tokenization": of["tokenization"]}
            way["beams"] = (of["decoding"] or {}).get("beams")
            if way not in found:
                found.append(way)
    return found


def markdown(result: dict) -> str:
    """The report as people read it; all scores × 100."""
    jobs, n_seeds = result["jobs"], len(result["seeds"])
    over = "one seed" if n_seeds == 1 else f"mean ± standard deviation over {n_seeds} seeds"
    lines = ["# Results", ""]
    lines += [f"Scores × 100, {over}; {jobs['evaluated']} of {jobs['evaluations']} evaluations done.", ""]
    lines += [*_table(result, SCORES), *_published(result)]
    if any("grounded" in cell["scores"] for row in result["rows"] for cell in row["cells"].values()):
        lines += ["", "Answers and captions that name what the picture shows (grounded accuracy):", ""]
        lines += _table(result, GROUNDED)
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(result)), ""])


def _columns(result: dict, scores: dict[str, dict[str, str]]) -> list[tuple[str, str, str]]:
    """Task, score and title of each."""
    return [
        (task, score, f"{TASK_NAMES[task]} {short}".strip())
        for task in result["tasks"]
        for score, short in scores[task].items()
    ]


def _published(result: dict) -> list[str]:
    """Rows of the same columns, with the numbers that others published."""
    lines = []
    for name, of_task in result["published"].items():
        values = [of_task.get(task, {}).get(score) for task, score, _ in _columns(result, SCORES)]
        cells = [MISSING if value is None else f"{value:.1f}" for value in values]
        lines.append("| " + " | ".join([f"*{name}*", "*published*", *cells]) + " |")
    return lines


def _table(result: dict, scores: dict[str, dict[str, str]]) -> list[str]:
    columns = _columns(result, scores)
    lines = ["| Model | Comments | " + " | ".join(title for _, _, title in columns) + " |"]
    lines.append("|---|---|" + "---:|" * len(columns))
    for row in result["rows"]:
        name = row["label"] + (" (our interpretation)" if row["model"] in result["interpreted"] else "")
        cells = [_text(row["cells"][task], score, len(result["seeds"])) for task, score, _ in columns]
        lines.append("| " + " | ".join([name, STARTS[row["start"]], *cells]) + " |")
    return lines


def _text(cell: dict, score: str, n_seeds: int) -> str:
    of = cell["scores"].get(score)
    if of is None:
        return "failed" if cell["status"] == "failed" else MISSING
    text = f"{100 * of['mean']:.1f}" + (f" ± {100 * of['std']:.1f}" if of["std"] is not None else "")
    return text if len(of["seeds"]) == n_seeds else f"{text} ({len(of['seeds'])} of {n_seeds} seeds)"


def _notes(result: dict) -> list[str]:
    notes = ["With comments: pretrained on posts' comments, then fine-tuned on the task. Without: fine-tuned alone."]
    tasks = result["tasks"]
    if any("cider" in SCORES[task] for task in tasks):
        notes.append("C: CIDEr, B@4: BLEU-4, R: ROUGE-L, over the whole split and on text.")
    notes += [TASKS[task].table_note for task in tasks if TASKS[task].table_note]
    if result["interpreted"]:
        names = dict.fromkeys(row["label"] for row in result["rows"] if row["model"] in result["interpreted"])
        notes.append(
            f"What the paper changed in {' and '.join(names)} is not public: their rows are our interpretation."
        )
    if result["published"]:
        notes.append("Published: as given in the recipe, measured by others on their own data and models.")
    ways = [f"{TASK_NAMES[task]} {_way(way)}" for task in tasks for way in result["evaluated"][task]]
    if ways:
        notes.append(f"Scored on: {'; '.join(ways)}.")
    notes.append(_data(result["data"]))
    notes.append(
        f"Jobs: {result['jobs']['done']} of {result['jobs']['total']} done, {duration(result['jobs']['seconds'])} in all."
    )
    notes += [f"Failed: {id} ({reason})." for id, reason in result["failed"].items()]
    return notes


def _way(way: dict[str, Any]) -> str:
    beams = f", {way['beams']} beams" if way["beams"] and way["beams"] > 1 else ", greedy" if way["beams"] else ""
    tokens = f", by {way['tokenization']}" if way["tokenization"] in ("char", "jieba", "bert") else ""
    return f"{way['split']} ({way['items']:,} items{tokens}{beams})"


def _data(data: dict) -> str:
    if data["source"] == "real":
        return "Data: the tasks' official files."
    return (
        f"Data: the sample world (seed {data['sample_seed']}), {data['sample_posts']:,} posts with comments and "
        f"{data['sample_pictures']:,} labeled training pictures a task."
    )
