"""How all settings dataclasses are checked. Standard library only."""

import dataclasses
from typing import Any


def check_settings(settings: Any) -> None:
    """Call `check()` of a settings dataclass and of all dataclasses nested in it; the inner ones first.

    `check()` raises UserError for values that cannot work and that the fields' types do not exclude. The command line calls
    this once, after parsing; the commands themselves do not check again.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            check_settings(value)
    if hasattr(settings, "check"):
        settings.check()
