"""Settings of a run's model: those of all models, and the fields of the chosen model's config."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from cromic_ds.models.common.config import CommentConfig, settings_of
from cromic_ds.models.registry import build_config, model_kind


@dataclass
class ModelSettings:
    """What is trained, and from which weights."""

    name: str = "cmt"
    """Model: cmt (CroMIC-CMT), vlp (Unified VLP) or vilt (ViLT); the latter two in our interpretation. `--help` lists the
    options of the model that is chosen beside it."""
    preset: str = "small"
    """Sizes to start from: tiny, small, paper (the original ones), and for cmt large or xl (1.2 G parameters). Fields of the
    model's config that are null keep the preset's value."""
    init_from: str | None = None
    """Start from the weights of this export or run folder, as far as they fit, instead of random ones; its model and its
    sizes replace `name` and the preset."""
    pretrained: str | None = None
    """Start from weights that others trained, as far as they fit. cmt: a state dict of the published code. vlp: a BertModel
    folder or hub name, or a checkpoint of the published Unified VLP. vilt: a ViltModel folder or hub name."""
    image_encoder: str | None = None
    """Start the ResNet from this ResNetModel folder or hub name, for example with ImageNet weights."""
    freeze_image_encoder: bool = False
    """Leave the image encoder as it is, its batch norm statistics included."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's config that replace those of the preset or of `init_from`. In YAML and on the command line each
    is an option of its own beside the ones above."""

    def check(self) -> None:
        """Raise UserError for an unknown model, preset or field, and for a field's value outside its limits."""
        if not self.init_from:  # otherwise the sizes are those of the weights
            build_config(self.name, self.preset, **self.overrides)


def as_values(settings: Any) -> dict[str, Any]:
    """`dataclasses.asdict` of settings that may contain a `ModelSettings`, with its overrides as plain keys, as in YAML."""
    values = dataclasses.asdict(settings)
    if isinstance(getattr(settings, "model", None), ModelSettings):
        values["model"] |= values["model"].pop("overrides")
    return values


# ---- the same settings as options of a parser: a dataclass for each model


def with_model_options(settings: type, name: str) -> type:
    """Return a dataclass like `settings`, with the options of model `name` in its section `model`, if it has this section.
    Raises UserError where there is no such model."""
    if get_type_hints(settings).get("model") is not ModelSettings:
        return settings
    options, about = _options_of(model_kind(name).config), {"__doc__": settings.__doc__}
    section = ("model", options, field(default_factory=options))
    return dataclasses.make_dataclass(settings.__name__, [section], bases=(settings,), namespace=about)


def model_settings(options: Any) -> ModelSettings:
    """Return the settings that the section `model` of such a dataclass stands for."""
    values, shared = dict(vars(options)), {f.name for f in dataclasses.fields(ModelSettings)}
    own = {name: values.pop(name) for name in list(values) if name not in shared}
    return ModelSettings(**values, overrides={name: value for name, value in own.items() if value is not None})


def _options_of(config: type[CommentConfig]) -> type:
    """A dataclass with the settings of all models and the fields of a config that can be set; these are null by default."""
    types = get_type_hints(ModelSettings)
    shared = [(f.name, types[f.name], f.default) for f in dataclasses.fields(ModelSettings) if f.name != "overrides"]
    fields = shared + [(name, hint | None, None) for name, hint in settings_of(config).items()]
    docs = _field_docs(ModelSettings) | _field_docs(config)
    about = [str(ModelSettings.__doc__), "", "Args:", *(f"    {name}: {docs[name]}" for name, *_ in fields)]
    hidden = settings_of(config).keys() - settings_of(config, False).keys()
    return dataclasses.make_dataclass(
        config.__name__.removesuffix("Config") + "Options",
        [(name, hint, field(default=default)) for name, hint, default in fields],
        namespace={"__doc__": "\n".join(about), "hidden": hidden},
    )


def _field_docs(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a class of ours, inherited ones included, each as one line."""
    from docstring_parser import parse_from_object

    ours = [base for base in reversed(kind.__mro__) if base.__module__.startswith("cromic_ds.")]
    params = [p for base in ours for p in parse_from_object(base).params]
    return {p.arg_name: " ".join(p.description.split()) for p in params if p.description}
