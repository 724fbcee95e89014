"""The run folder and the starting model: made or checked before a run starts."""

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast, ResNetModel

from cromic_ds.data.dataset import Dataset
from cromic_ds.data.loader import DataSettings, eval_batches
from cromic_ds.data.store import answers_fingerprint
from cromic_ds.data.tokenizer import tokenizer_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.files import write_atomically, write_json
from cromic_ds.inference.exports import find_export, load_export
from cromic_ds.models.common.config import CommentConfig
from cromic_ds.models.common.image_encoder import ImageEncoder, set_batch_norm
from cromic_ds.models.common.weights import LoadReport, load_matching
from cromic_ds.models.registry import CommentModel, build_config, build_model, model_kind, vocabulary_of
from cromic_ds.models.settings import ModelSettings, as_values
from cromic_ds.run_folder import ANSWERS, FACTS, RunFolder

# Settings that a resume may not change, because the run would no longer take the same steps. The data may move to another
# folder: their fingerprint is compared.
FIXED = ("seed", "model", "loop.global_batch", "data.comments_per_post")


def open_folder(folder: Path, settings: dict, more_fixed: tuple[str, ...] = ()) -> None:
    """Make the run folder, or check that it holds this run. Raise UserError for another value of a setting that is fixed."""
    saved = RunFolder(folder).config
    if saved.exists():
        try:
            before = yaml.safe_load(saved.read_text())
            fixed = [value for name in (*FIXED, *more_fixed) for value in old_and_new(before, settings, name)]
        except (yaml.YAMLError, KeyError, TypeError):
            raise UserError(f"{saved} is not the configuration of a run: name another folder with --out") from None
        for name, old, new in fixed:
            if old != new:
                raise UserError(
                    f"{folder} holds a run with {name} = {old!r}, and this command says {new!r}: "
                    "use another run folder (--out), or the setting it was started with"
                )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run (no config.yaml): name another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(saved, yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from None


def pick(values: dict, dotted: str) -> Any:
    """Return the value of a dotted name in nested dicts."""
    for key in dotted.split("."):
        values = values[key]
    return values


def old_and_new(old: dict, new: dict, name: str) -> list[tuple[str, Any, Any]]:
    """Return (name, old value, new value) of a setting, or of each setting in a section."""
    of_old, of_new = pick(old, name), pick(new, name)
    if isinstance(of_old, dict) and isinstance(of_new, dict):
        return [(f"{name}.{key}", of_old.get(key), of_new.get(key)) for key in of_old | of_new]
    return [(name, of_old, of_new)]


class StartingModel(NamedTuple):
    """A model before its first step."""

    model: CommentModel
    taken: set[str]  # names of the parameters that come from given weights
    origin: str  # where the weights come from, for the log: what was taken, what is new and what was left out


def make_model(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    answers: list[str] | None = None,
    fine_tuning: bool = False,
) -> StartingModel:
    """Return the model with its starting weights: random from `seed`, or from given weights as far as they fit.

    `answers` is the vocabulary of the answer head, if answers are classified. `fine_tuning` leaves out the losses that a model
    has only in pretraining, unless the settings ask for them. Raises UserError for weights that do not fit settings and data.
    """

    def build(config: CommentConfig) -> CommentModel:
        before = config.fine_tuned if fine_tuning else {}
        from_data = {**vocabulary_of(tokenizer, config), "n_answers": len(answers or [])}
        return build_model(config.changed({**before, **settings.overrides, **from_data}))

    torch.manual_seed(seed)
    if settings.init_from and (other := settings.image_encoder or settings.pretrained):
        which = "model.image_encoder" if settings.image_encoder else "model.pretrained"
        raise UserError(f"{which}: {other} and model.init_from both bring weights; leave one of the two out")
    taken, origin = set[str](), "random"
    if settings.init_from:
        source, other, facts = load_export(find_export(settings.init_from))
        if tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer):
            raise UserError(
                f"model.init_from: {settings.init_from} was trained with another tokenizer than the data's: prepare "
                f"the data again with --tokenizer {settings.init_from}"
            )
        if answers is not None and facts.get("answers_fingerprint", known := answers_fingerprint(answers)) != known:
            raise UserError(
                f"model.init_from: {settings.init_from} was trained with another answer vocabulary than the data's: "
                f"prepare the data again with --answers {Path(settings.init_from) / ANSWERS}"
            )
        model = build(source.config)
        report = load_matching(model, source.state_dict())
        if not report.taken:
            raise UserError(f"model.init_from: nothing of {settings.init_from} fits a model with these settings")
        taken, origin = set(report.taken), f"from {settings.init_from}: {report}"
    else:
        model = build(build_config(settings.name, settings.preset))
        if settings.pretrained:
            load = model_kind(settings.name).load_pretrained
            if load is None:
                raise UserError(f"model.pretrained: {settings.name} has no weights that others trained; leave it out")
            report = load(model, settings.pretrained)
            taken, origin = set(report.taken), f"from {settings.pretrained}: {report}"
        if settings.image_encoder:
            report = load_image_encoder(model, settings.image_encoder)
            taken |= {f"image_encoder.backbone.{name}" for name in report.taken}
            origin += f"; image encoder from {settings.image_encoder}: {report}"
    if settings.freeze_image_encoder:
        if hasattr(model.config, "batch_norm"):
            model.config.batch_norm = "frozen"
        set_batch_norm(model.image_encoder, "frozen")
        model.image_encoder.requires_grad_(False)
    model.use_tokenizer(tokenizer)
    for module in model.unused():  # AdamW's weight decay would still change them
        module.requires_grad_(False)
    return StartingModel(model, taken, origin)


def load_image_encoder(model: CommentModel, source: str) -> LoadReport:
    """Copy the weights of a ResNetModel (a folder or Hub name) into the model's image encoder."""
    if not isinstance(model.image_encoder, ImageEncoder):
        raise UserError("model.image_encoder: this model has no ResNet; leave it out")
    try:
        resnet, found = cast(Any, ResNetModel.from_pretrained(source, output_loading_info=True))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.image_encoder: {source!r} cannot be read ({str(error).splitlines()[0]})") from None
    if missing := sorted(found["missing_keys"]):  # another kind of model, which transformers fills with random weights
        raise UserError(f"model.image_encoder: {source!r} is no ResNetModel: it has no {missing[0]}")
    weights = resnet.state_dict()
    report = load_matching(model.image_encoder.backbone, weights)
    if not report.taken or report.mismatched:
        raise UserError(f"model.image_encoder: {source!r} does not fit the model's ResNet: {report.mismatched[0]}")
    return report


def calibrate_batch_norm(model: CommentModel, taken: set[str], dataset: Dataset, data: DataSettings) -> None:
    """Set frozen batch-norm statistics to those of the first 64 training images, unless pretrained weights bring theirs."""
    pretrained = any(name.startswith("image_encoder.") for name in taken)
    if pretrained or getattr(model.config, "batch_norm", None) != "frozen" or not model.image_size:
        return
    first = eval_batches(dataset, data, image_size=model.image_size, micro_batch=64, rank=0, world_size=1, limit=64)
    images = next(first).images
    assert isinstance(model.image_encoder, ImageEncoder) and images is not None  # a ResNet, as it has batch norm
    model.image_encoder.calibrate(images)


def write_model_folder(
    folder: Path,
    model: CommentModel,
    tokenizer: PreTrainedTokenizerFast,
    data: DataSettings,
    task: str,
    answers: list[str] | None,
) -> None:
    """Write RUN/model: all that an export needs besides the weights."""
    target = RunFolder(folder).model
    model.config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    facts: dict[str, Any] = {
        "max_post_tokens": data.max_post_tokens,
        "max_comment_tokens": data.max_comment_tokens,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "task": task,
    }
    if answers is not None:
        write_json(target / ANSWERS, answers)
        facts["answers_fingerprint"] = answers_fingerprint(answers)
    write_json(target / FACTS, facts, indent=1)


def settings_dict(settings: Any) -> dict[str, Any]:
    """Return nested settings dataclasses as plain values, for YAML and dashboards."""
    return json.loads(json.dumps(as_values(settings), default=str))
