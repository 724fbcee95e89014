"""Weights that others trained: reading them, renaming them and copying what fits."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cromic_ds.errors import UserError

Rules = list[tuple[str, str]]  # (pattern of a foreign name, template of ours), tried in order


@dataclass
class LoadReport:
    """What happened to each name, for the log: nothing is dropped in silence."""

    taken: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the model, not in the weights: left at their initial values
    extra: list[str] = field(default_factory=list)  # in the weights, with no place in the model
    mismatched: list[str] = field(default_factory=list)  # the same name with another shape

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} tensors taken"]
        for what in ("missing", "extra", "mismatched"):
            names = getattr(self, what)
            lines += [f"{len(names)} {what}" + (":" if names else "")] + [f"  {name}" for name in names]
        return "\n".join(lines)


def renamed(name: str, rules: Rules) -> str | None:
    """Return the name by the first rule whose pattern matches all of it, or None."""
    for pattern, template in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return None


def load_matching(model: nn.Module, weights: Mapping[str, Tensor]) -> LoadReport:
    """Copy every tensor whose name and shape the model has, and report the rest."""
    own = model.state_dict()
    report = LoadReport()
    fitting = {}
    for name, tensor in weights.items():
        if name not in own:
            report.extra.append(name)
        elif own[name].shape != tensor.shape:
            report.mismatched.append(f"{name}: {tuple(tensor.shape)} there, {tuple(own[name].shape)} here")
        else:
            fitting[name] = tensor
    model.load_state_dict(fitting, strict=False)
    report.taken = sorted(fitting)
    # num_batches_tracked only counts; older checkpoints do not have it
    report.missing = [n for n in own if n not in weights and not n.endswith("num_batches_tracked")]
    return report


def load_translated(
    model: nn.Module, weights: Mapping[str, Tensor], extra: list[str], foreign: Iterable[str], what: str
) -> LoadReport:
    """Load weights under our names, and report as extra also the foreign names that have no place.

    Raises UserError where no tensor fits `what`; the message quotes the first of the `foreign` names.
    """
    report = load_matching(model, weights)
    report.extra = extra + report.extra
    if not report.taken:
        raise UserError(f"no tensor fits {what}; the weights contain: {', '.join(list(foreign)[:3])} …")
    return report


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .pt file, also from inside a dict of dicts. Raises UserError where that cannot be read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except Exception:  # bytes that are no pickle make the unpickler fail in many ways, with KeyError for example
        reason = "no torch file, or one with other objects, which are never loaded"
        raise UserError(f"{path}: not a file of plain tensors ({reason})") from None
    while isinstance(content, dict) and not all(isinstance(v, Tensor) for v in content.values()):
        inner = [v for v in content.values() if isinstance(v, dict)]
        if not inner:
            break
        content = max(inner, key=len)
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path}: holds no state dict")
    return content
