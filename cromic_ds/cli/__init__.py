"""The command line. `main` is the program `cromic-ds`, `script` what a launcher starts."""

from cromic_ds.cli.commands import main, script

__all__ = ["main", "script"]
