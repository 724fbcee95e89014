"""The documents name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

DOCUMENTS = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
CREATED = {"cromic_ds/tasks/product_qa.py", "cromic_ds/models/plain.py"}  # by the reader of docs/adding_a_….md
PLACES = ["cromic_ds", "tests", "benchmarks", "launch"]


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name != "CHANGELOG.md"], ids=lambda path: path.name)
def test_the_scripts_that_it_names_exist(document: Path):
    named = set(re.findall(r"`([\w/]+\.(?:py|sh))`", document.read_text())) - CREATED
    assert {name for name in named if not exists(name)} == set()


def exists(name: str) -> bool:
    return (REPOSITORY / name).is_file() or any(any((REPOSITORY / place).rglob(name)) for place in PLACES)
