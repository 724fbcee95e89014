"""The example of docs/adding_a_task.md, as a reader would add it: one file and one line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launching import environment
from helpers.paths import REPOSITORY

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.store import read_meta

DOCUMENT = (REPOSITORY / "docs" / "adding_a_task.md").read_text(encoding="utf-8")
FILE, LINE = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
COMMANDS = [shlex.split(line) for line in re.findall(r"^    cromic-ds (.*)$", DOCUMENT, re.M)]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the package with the example in it."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(REPOSITORY / "cromic_ds", root / "cromic_ds", ignore=shutil.ignore_patterns("__pycache__"))
    tasks = root / "cromic_ds" / "tasks"
    (tasks / "product_qa.py").write_text(FILE, encoding="utf-8")
    with (tasks / "__init__.py").open("a", encoding="utf-8") as init:
        init.write(f"\nfrom cromic_ds.tasks.product_qa import PRODUCT_QA\n\n{LINE}")
    return root


@pytest.fixture(scope="module")
def folder(house, store, export_folder) -> Path:
    """A folder with the official files, in which the commands of the document have run."""
    files = house / "files"
    (files / "photos").mkdir(parents=True)
    pictures = open_dataset(store, "train")
    for number in range(3):
        (files / "photos" / f"photo{number}.jpg").write_bytes(pictures.image(number))
    question = {"photo": "photo0", "question": "左边是什么颜色？"}
    answered = [question | {"id": k, "photo": f"photo{k % 2}", "answers": ["红色", "红色的"]} for k in range(1, 5)]
    splits = {
        "train": [*answered, question | {"id": 5, "answers": [" "]}],
        "val": answered[:2],
        "test": [question | {"id": "t6", "photo": "photo2"}],
    }
    for split, items in splits.items():
        (files / f"{split}.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    (house / "export").symlink_to(export_folder)
    quick = {"prepare": ["--workers", "1", "--max_reject_rate", "0.2"], "predict": ["--beams", "1"]}
    quick["score"] = ["--meteor", "false", "--resamples", "20"]
    commands = [[*command, *quick[command[0]]] for command in COMMANDS if command[0] in quick]  # not finetune
    assert [command[0] for command in commands] == ["prepare", "predict", "predict", "score"]
    script = f"from cromic_ds.cli import main\nfor command in {commands}: main(command)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=house,
        env=environment(PYTHONPATH=str(house)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return house


def test_the_store(folder):
    meta = read_meta(folder / "store")
    assert (meta["task"], meta["max_post_tokens"], meta["max_comment_tokens"]) == ("product_qa", 60, 25)
    assert {split: (counts["records"], counts["images"]) for split, counts in meta["splits"].items()} == {
        "train": (4, 2),
        "val": (2, 2),
        "test": (1, 1),
    }
    assert meta["rejects"] == {"empty answer": 1}
    [record] = [open_dataset(folder / "store", "test").texts(0)]
    assert (record.id, record.post, record.comments) == ("t6", "左边是什么颜色？", [])
    assert open_dataset(folder / "store").texts(0).comments == ["红色", "红色的"]


def test_the_submission(folder):
    [line] = (folder / "submission.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(json.loads(line)) == ["id", "answer"] and json.loads(line)["id"] == "t6"


def test_the_scores(folder):
    result = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert (result["task"], result["tokenization"], result["counts"]["items"]) == ("product_qa", "char", 2)
    assert {"cider", "exact_match"} <= result["scores"].keys()
    ids = [json.loads(line)["id"] for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert ids == [1, 2]
