"""The command line. `main` is the program `cromic-ds`; `script` is what pretrain.py and finetune.py run."""

from cromic_ds.cli.commands import main, script

__all__ = ["main", "script"]
