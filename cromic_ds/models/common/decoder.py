"""The part of a model that generates comments from encoded posts: CroMIC-CMT's decoder, its loss, and `generate`.

Legend: P posts, N comments, S source tokens, T comment tokens, M target tokens, H heads, D width, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import ModelOutput

from cromic_ds.batch import Batch
from cromic_ds.models.common.config import CommentConfig
from cromic_ds.models.common.flops import Load, attention_flops, weights_of
from cromic_ds.models.common.kernels import DEFAULT, IGNORE, Kernels, LayerNorm
from cromic_ds.models.common.transformer import DecoderLayer, DenseLayout, Layout, RaggedLayout, SourceProjection

_GIVEN: Any = None  # a ModelOutput must have defaults, but the fields of `Memory` are always given


@dataclass
class Memory(ModelOutput):
    """Encoded posts as the decoder reads them, the same for all comments, beams and steps of a post."""

    last_hidden_state: Tensor = _GIVEN  # (P, S, D)
    mask: Tensor = _GIVEN  # (P, 1, 1, S) bool, True where a token may be read
    source: tuple[tuple[Tensor, Tensor], ...] = _GIVEN  # (P, H, S, D/H) each, for each layer that reads it


class CommentDecoder(PreTrainedModel if TYPE_CHECKING else object):
    """What all models of posts and comments share. It is the first base class, before `PreTrainedModel` and `GenerationMixin`.

    `forward` takes a `Batch` (training, scoring) or transformers' keyword arguments (generation). A subclass defines `encode`
    (the arguments of `generate` to `Memory`), `answer_logits`, `unused` (the modules that its configuration does not train) and
    `flops_formula` (a function from a batch to the FLOPs of its forward pass).
    """

    config: CommentConfig
    encode: Callable[..., Memory]
    answer_logits: Callable[[Batch], Tensor]
    unused: Callable[[], list[nn.Module]]
    flops_formula: Callable[[], Callable[[Batch], float]]
    encoder_layers: nn.ModuleList
    dropout: nn.Dropout
    _gradient_checkpointing_func: Callable[..., Any]

    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_cache_class = True

    kernels: Kernels = DEFAULT
    encoder_heads = ("answer_head",)  # modules that read the encoder's states

    @property
    def image_size(self) -> int:
        """Side of the image crops in pixels; 0 where the model reads no images."""
        return self.config.image_size if "v" in self.config.mode else 0

    def add_decoder(self, width: int, n_heads: int, inner: int, dropout: float, layers: int, vocab_size: int) -> None:
        self.decoder_layers = nn.ModuleList(DecoderLayer(width, n_heads, inner, dropout) for _ in range(layers))
        self.source_projections = nn.ModuleList(SourceProjection(width, n_heads) for _ in range(layers))
        self.decoder_norm = LayerNorm(width)
        self.generator = nn.Linear(width, vocab_size)

    def decoder_modules(self) -> list[nn.Module]:
        return [self.decoder_layers, self.source_projections, self.decoder_norm, self.generator]

    def decoder_flops(self) -> Callable[[Load], float]:
        """Return a function from a batch's load to the FLOPs of a forward pass, keys and values of the posts included."""
        width, layers = self.config.d_model, len(self.decoder_layers)
        of_source = 2 * weights_of(self.source_projections)
        of_target = 2 * weights_of(self.decoder_layers, self.generator)

        def flops(load: Load) -> float:
            pairs = load.targets * (load.mean_source + load.mean_own)
            return of_source * load.source + of_target * load.targets + attention_flops(width, layers, pairs)

        return flops

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Token ids and their positions, of the same shape (…,) -> (…, D)"""
        width = self.config.d_model
        return self.get_input_embeddings()(ids) * math.sqrt(width) + sinusoidal_positions(positions, width)

    def decode(
        self, ids: Tensor, positions: Tensor, layout: Layout, memory: Memory, cache: Cache | None = None
    ) -> Tensor:
        """Token ids and positions (M,) -> hidden states (M, D), before the output layer."""
        x = self.dropout(self.embed(ids, positions))
        for index, (layer, source) in enumerate(zip(self.decoder_layers, memory.source)):
            x = self._run(layer, x, layout, source, memory.mask, cache, index)
        return self.decoder_norm(x)

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """Weight (V, D) and bias (V,) that turn hidden states into logits."""
        return self.generator.weight, self.generator.bias

    def _run(self, layer: nn.Module, *args: Any) -> Any:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer.__call__, *args)
        return layer(*args)

    # ---- training and scoring

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep what `draw` needs to know about the tokens; by default nothing."""

    def draw(self, batch: Batch, seed: int) -> Batch:
        """Return the batch with everything random that its training step needs in `Batch.drawn`; by default nothing is drawn.

        What is drawn for an example depends on `seed` and on the example's index alone.
        """
        return batch

    def forward(self, batch: Batch | None = None, **inputs: Any) -> Tensor | Seq2SeqLMOutput:
        """Return the summed loss of a `Batch`, or for keyword arguments the output of a decoding step, as `generate` needs it.

        The loss of a batch with answer targets is Σ over posts of the summed binary cross-entropy of all answers,
        otherwise Σ over target tokens of the cross-entropy; the caller divides by the global count.
        """
        if batch is None:
            return self.decoding_step(**inputs)
        return self.text_loss(batch) if batch.answer_targets is None else self.answer_loss(batch)

    def answer_loss(self, batch: Batch) -> Tensor:
        assert batch.answer_targets is not None
        logits = self.answer_logits(batch).float()
        losses = F.binary_cross_entropy_with_logits(logits, batch.answer_targets, reduction="none").sum(1)
        return (losses * batch.weights).sum()

    def text_loss(self, batch: Batch) -> Tensor:
        memory = self.encode(batch.post_ids, self.post_mask(batch), batch.images)
        return self.token_loss(batch, *self.decode_comments(batch, memory))

    def token_loss(self, batch: Batch, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return Σ cross-entropy of target tokens (M,) from states (M, D), times their factors in `Batch.comment_weights`, if
        any."""
        weight, bias = self.output_layer()
        if batch.comment_weights is not None:
            logits = F.linear(hidden, weight, bias).float()
            losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
            return (losses * batch.comment_weights[batch.rows // (batch.comment_ids.shape[1] - 1)]).sum()
        smoothing = self.config.label_smoothing if self.training else 0.0
        return self.kernels.linear_cross_entropy(hidden, weight, bias, targets, smoothing)

    def decode_comments(self, batch: Batch, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return hidden states (M, D) and targets (M,) of all comments under teacher forcing. Targets of posts with weight 0
        are IGNORE."""
        n, length = batch.comment_ids.shape[0], batch.comment_ids.shape[1] - 1
        layout = RaggedLayout(batch.rows, n, length, batch.post_rows, batch.n_posts, batch.tokens_per_post)
        inputs = batch.comment_ids[:, :-1].flatten()[batch.rows]
        targets = batch.comment_ids[:, 1:].flatten()[batch.rows]
        comment = batch.rows // length
        counts = batch.weights[batch.owner[comment]] > 0
        hidden = self.decode(inputs, batch.rows % length, layout, memory)
        return hidden, targets.masked_fill(~counts, IGNORE)

    @staticmethod
    def post_mask(batch: Batch) -> Tensor:
        return torch.arange(batch.post_ids.shape[1], device=batch.post_ids.device) < batch.post_lengths[:, None]

    # ---- fine-tuning

    def depth(self, name: str) -> int:
        """Return the layer that a parameter belongs to, counted from the input (0: embeddings and image encoder)."""
        part, _, rest = name.partition(".")
        index = int(rest.split(".")[0]) if part.endswith(("_layers", "projections")) else 0
        encoder, decoder = len(self.encoder_layers), len(getattr(self, "decoder_layers", ()))
        places = {
            "encoder_layers": 1 + index,
            "encoder_norm": encoder,
            "decoder_layers": encoder + 1 + index,
            "source_projections": encoder + 1 + index,
            "decoder_norm": encoder + decoder,
            "generator": encoder + decoder + 1,
            **dict.fromkeys(self.encoder_heads, encoder + 1),
        }
        return places.get(part, 0)

    # ---- generation (transformers)

    def decoding_step(
        self,
        decoder_input_ids: Tensor,
        encoder_outputs: Memory | None = None,
        past_key_values: Cache | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **_unused: Any,
    ) -> Seq2SeqLMOutput:
        """Return what `next_logits` makes of decoder_input_ids (N, T), N a multiple of the posts, and the extended cache."""
        memory = self.encode(input_ids, attention_mask, pixel_values) if encoder_outputs is None else encoder_outputs
        cache = getattr(past_key_values, "self_attention_cache", past_key_values)
        logits = self.next_logits(decoder_input_ids, memory, cache)
        return Seq2SeqLMOutput(logits=logits, past_key_values=cast(Any, past_key_values))

    def next_logits(self, ids: Tensor, memory: Memory, cache: Cache | None) -> Tensor:
        """(N, T) -> (N, T, V)"""
        n, length = ids.shape
        start = cache.get_seq_length() if cache is not None else 0
        positions = torch.arange(start, start + length, device=ids.device).repeat(n)
        hidden = self.decode(ids.flatten(), positions, DenseLayout(n, memory.mask.shape[0]), memory, cache)
        return F.linear(hidden, *self.output_layer()).unflatten(0, (n, length))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers' `generate` does. The post is encoded here, once for any number of beams or samples.

        Args:
            input_ids: (P, L) int64 post tokens, right-padded; None or L = 0 for images alone.
            attention_mask: (P, L), nonzero at real tokens; by default where `input_ids` is not padding.
            pixel_values: (P, 3, H, W), uint8 RGB crops or floats that are already normalized; None for text alone.
        """
        if kwargs.get("encoder_outputs") is None:
            kwargs["encoder_outputs"] = self.encode(input_ids, attention_mask, pixel_values)
        return cast(Any, super()).generate(**kwargs)

    def prepare_inputs_for_generation(
        self,
        decoder_input_ids: Tensor,
        past_key_values: Cache | None = None,
        encoder_outputs: Memory | None = None,
        **_unused: Any,
    ) -> dict[str, Any]:
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        kept = {"past_key_values": past_key_values, "encoder_outputs": encoder_outputs}
        return {"decoder_input_ids": decoder_input_ids[:, seen:], **kept}

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = True, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        assert input_ids is not None
        # Beams and samples of a post share its memory, so only the target rows are repeated, in the posts' order.
        return input_ids.repeat_interleave(expand_size, dim=0), kwargs


def sinusoidal_positions(positions: Tensor, width: int) -> Tensor:
    """(…,) -> (…, width): sin in even, cos in odd columns, wavelengths from 2π to 10,000·2π (Vaswani et al. 2017)."""
    even = torch.arange(0, width, 2, device=positions.device)
    frequencies = torch.exp(even * (-torch.log(torch.tensor(1e4)) / width))
    angles = positions[..., None].float() * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def answer_head(width: int, n_answers: int) -> nn.Sequential | None:
    """Return a head width -> 2·width -> layer norm -> GELU -> answers, or None where answers are not classified."""
    if not n_answers:
        return None
    return nn.Sequential(nn.Linear(width, 2 * width), LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, n_answers))


def needed_inputs(mode: str) -> str:
    """Name what a model with this mode has to be given, for a message."""
    return {"t": "post tokens", "v": "an image"}.get(mode, "post tokens or an image")
