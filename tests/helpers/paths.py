"""Folders of the repository."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
REPOSITORY = HELPERS.parents[1]
CONFIGS = REPOSITORY / "ds_configs"
BENCHMARKS = REPOSITORY / "benchmarks"
