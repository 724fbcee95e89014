"""cromic_ds: the training system for CroMIC-CMT, Unified VLP and ViLT on DeepSpeed.

The names below are imported when they are first used, so `import cromic_ds` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cromic_ds.data.open_dataset import open_dataset as open_dataset
    from cromic_ds.inference.loaded import load as load
    from cromic_ds.models.registry import build_model as build_model
    from cromic_ds.tasks import TASKS as TASKS

__version__ = "0.1.0"
__all__ = ["TASKS", "__version__", "build_model", "load", "open_dataset"]

_HOMES = {
    "TASKS": "cromic_ds.tasks",
    "build_model": "cromic_ds.models.registry",
    "load": "cromic_ds.inference.loaded",
    "open_dataset": "cromic_ds.data.open_dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cromic_ds' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
