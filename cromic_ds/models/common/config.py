"""What the configs of all models share: fields, the limits of their values, and which of them a user may set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

from transformers import PreTrainedConfig

from cromic_ds.errors import UserError, nearest


class Limit(NamedTuple):  # of a number, written into the type of a config's field: `Annotated[int, Limit(…)]`
    holds: Callable[[float], bool]
    text: str  # completes "give …"


Count = Annotated[int, Limit(lambda n: n >= 1, "at least 1")]
Share = Annotated[float, Limit(lambda x: 0 <= x <= 1, "a share from 0 to 1")]
ShareBelowOne = Annotated[float, Limit(lambda x: 0 <= x < 1, "0 or more, below 1")]
ProperShare = Annotated[float, Limit(lambda x: 0 < x < 1, "a share between 0 and 1")]
Weight = Annotated[float, Limit(lambda x: x >= 0, "0 or more")]

HIDDEN, DERIVED = "hidden", "derived"
_T = TypeVar("_T")
Constant = Annotated[_T, HIDDEN]  # of the architecture: can be set by name, but `--help` does not list it
Derived = Annotated[_T, DERIVED]  # follows from the data, or tells transformers what the model is: cannot be set


class CommentConfig(PreTrainedConfig):
    """Fields of every model of posts and comments. Each docstring is the help of `--model.FIELD`."""

    presets: ClassVar[dict[str, dict[str, Any]]]  # fields by the name of a preset
    fine_tuned: ClassVar[dict[str, Any]] = {}  # values that fine-tuning starts from where the settings give none

    mode: Literal["t+v", "v", "t"] = "t+v"
    """Input of the encoder: t+v (text and image), v or t."""
    image_size: Count = 224
    """Side of the square image crops in pixels."""
    d_model: Count = 768
    """Width of the transformer."""
    encoder_layers: Count = 12
    """Number of encoder layers."""
    n_heads: Count = 12
    """Attention heads."""
    ffn: Count = 3072
    """Inner width of the feed-forward blocks."""
    dropout: ShareBelowOne = 0.1
    """Dropout probability."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of each target's probability that is spread over all tokens, in training only."""
    n_answers: Derived[int] = 0
    """Number of answers that the answer head classifies; without any there is no such head."""
    vocab_size: Derived[int] = 21128
    pad_token_id: Derived[int] = 0
    bos_token_id: Derived[int] = 101
    eos_token_id: Derived[int] = 102
    decoder_start_token_id: Derived[int] = 101
    is_encoder_decoder: Derived[bool] = True
    tie_word_embeddings: Derived[bool] = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raise UserError for a value outside the limits of its field. Subclasses add what involves several fields."""
        for name, hint in types_of(type(self)).items():
            value, (plain, *marks) = getattr(self, name), split_hint(hint)
            options = get_args(plain) if get_origin(plain) is Literal else ()
            if options and value not in options:
                known = ", ".join(map(str, options))
                raise UserError(f"model.{name}: {value!r}{nearest(str(value), options)}; one of {known}")
            for limit in marks:
                if isinstance(limit, Limit) and not limit.holds(value):
                    raise UserError(f"model.{name} is {value}: give {limit.text}")
        if self.d_model % self.n_heads:
            raise UserError(f"model: d_model {self.d_model} is not divisible by n_heads {self.n_heads}")

    def changed(self, fields: Mapping[str, Any]) -> CommentConfig:
        """Return a copy with single fields replaced. Raises UserError for an unknown field or a value outside its limits."""
        for name in fields:
            if name not in types_of(type(self)):
                known = settings_of(type(self))
                raise UserError(f"model.{name}: {self.model_type} has no such setting{nearest(name, known)}")
        return type(self)(**{**self.to_dict(), **fields})


class ResNetCommentConfig(CommentConfig):
    """Fields of a model whose images pass through a ResNet first."""

    batch_norm: Literal["frozen", "batch", "sync"] = "batch"
    """Statistics of the image encoder's batch norm: frozen (never change, so no step depends on how the batch is split),
    batch (each micro-batch's own, the published way) or sync (each micro-batch's over all ranks)."""
    resnet: Constant[dict[str, Any] | None] = None
    """Sizes of the ResNet, as in transformers' ResNetConfig."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.resnet = self.resnet or RESNET50
        super().__post_init__(**kwargs)

    def check(self) -> None:
        super().check()
        if grid_side(self.image_size) < 1:
            raise UserError(f"model.image_size is {self.image_size}: too small for one image token; give at least 33")


def resnet(embedding_size: int, hidden_sizes: list[int], depths: list[int], layer_type: str) -> dict[str, Any]:
    return dict(embedding_size=embedding_size, hidden_sizes=hidden_sizes, depths=depths, layer_type=layer_type)


TINY_RESNET = resnet(16, [16, 32, 64, 128], [1, 1, 1, 1], "basic")
SMALL_RESNET = resnet(32, [32, 64, 128, 256], [2, 2, 2, 2], "basic")
RESNET50 = resnet(64, [256, 512, 1024, 2048], [3, 4, 6, 3], "bottleneck")


def sizes(d_model: int, encoder_layers: int, n_heads: int, ffn: int) -> dict[str, int]:
    return dict(d_model=d_model, encoder_layers=encoder_layers, n_heads=n_heads, ffn=ffn)


def grid_side(image_size: int) -> int:
    """Image tokens per side behind a ResNet, which halves five times, rounding up, and a 2×2 pool of stride 1."""
    side = image_size
    for _ in range(5):
        side = (side + 1) // 2
    return side - 1


# ---- what the fields of a config class are


@cache
def types_of(config: type[CommentConfig]) -> dict[str, Any]:
    """Name to type, limits and markers included, of the fields that our config classes define; shared ones first."""
    types: dict[str, Any] = {}
    for base in reversed(config.__mro__):
        if issubclass(base, CommentConfig):
            types |= inspect.get_annotations(base, eval_str=True)
    return {name: hint for name, hint in types.items() if ClassVar not in (hint, get_origin(hint))}


def settings_of(config: type[CommentConfig], hidden: bool = True) -> dict[str, Any]:
    """The fields that a user may set, by name, with their plain types; without the constants where `hidden` is False."""
    left_out = {DERIVED} if hidden else {DERIVED, HIDDEN}
    split = {name: split_hint(hint) for name, hint in types_of(config).items()}
    return {name: plain for name, (plain, *marks) in split.items() if not left_out & set(marks)}


def split_hint(hint: Any) -> tuple[Any, ...]:
    """Return a plain type, followed by its limits and markers."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)
