"""The names of all files in a run folder. Standard library only: the guard process imports it too."""

from __future__ import annotations

EMA_FILE = "ema.safetensors"  # in a checkpoint: all averaged weights, whole, whatever the number of ranks
