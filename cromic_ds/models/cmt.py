"""CroMIC-CMT: a post and its image, encoded together, and a decoder that generates the comments people wrote under them.

Legend: P posts, N comments, L post tokens, K image tokens, S = L + K source tokens, T comment tokens, M target tokens,
D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput, Seq2SeqLMOutput
from transformers.models.resnet.modeling_resnet import ResNetStage

from cromic_ds.batch import Batch
from cromic_ds.models.image_encoder import ImageEncoder
from cromic_ds.models.kernels import DEFAULT, IGNORE, Kernels, LayerNorm
from cromic_ds.models.transformer import (
    DecoderLayer,
    DenseLayout,
    EncoderLayer,
    RaggedLayout,
    SourceProjection,
    sinusoidal_positions,
)

RESNET50 = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
}


class CMTConfig(PreTrainedConfig):
    """Every choice of the model. The defaults are preset `paper`."""

    model_type = "cromic_cmt"

    vocab_size: int = 21128
    d_model: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    n_heads: int = 8
    ffn: int = 1024
    dropout: float = 0.0
    mode: str = "t+v"
    image_size: int = 224
    resnet: dict | None = None
    image_norm: str = "l2"
    image_positions: bool = False
    embedding_std: float = 1.0
    batch_norm: str = "batch"
    n_answers: int = 0
    is_encoder_decoder: bool = True
    pad_token_id: int = 0
    bos_token_id: int = 101
    eos_token_id: int = 102
    decoder_start_token_id: int = 101
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.resnet = self.resnet or RESNET50
        super().__post_init__(**kwargs)


BALANCED = {"image_norm": "layer", "image_positions": True, "embedding_std": 0.02, "batch_norm": "frozen"}

PRESETS: dict[str, dict] = {
    "tiny": {
        **BALANCED,
        **{
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "n_heads": 4,
            "ffn": 256,
            "image_size": 112,
            "embedding_std": 0.09,
        },
        "resnet": {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 64, 128],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        },
    },
    "small": {
        **BALANCED,
        **{"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "n_heads": 6, "ffn": 1024},
        "resnet": {
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 128, 256],
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
        },
    },
    "paper": {},
    "large": {
        **BALANCED,
        **{"d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "n_heads": 16, "ffn": 4096},
        "resnet": {**RESNET50, "depths": [3, 4, 23, 3]},
    },
    "xl": {
        **BALANCED,
        **{"d_model": 1536, "encoder_layers": 16, "decoder_layers": 16, "n_heads": 24, "ffn": 6144},
        "resnet": {**RESNET50, "depths": [3, 8, 36, 3]},
    },
}


@dataclass
class Memory(ModelOutput):
    """An encoded post, ready for the decoder: the same for all of its comments, beams and steps."""

    last_hidden_state: Tensor | None = None  # (P, S, D)
    mask: Tensor | None = None  # (P, 1, 1, S) bool, True where a token may be read
    source: tuple | None = None  # per decoder layer: cross-attention keys and values, (P, H, S, D/H) each


class CMTModel(PreTrainedModel, GenerationMixin):
    """The model with two entrances: a `Batch` (training, scoring) and transformers' keyword arguments (generation)."""

    config_class = CMTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _input_embed_layer = "token_embedding"
    _supports_sdpa = True
    _supports_cache_class = True

    kernels: Kernels = DEFAULT
    # ZeRO-3 gathers each of these as a whole: few large messages instead of one for every small module inside.
    gathered_whole = (ResNetStage, EncoderLayer, DecoderLayer)
    compiled = (EncoderLayer, DecoderLayer)  # by torch.compile, each kind once whatever the depth

    def __init__(self, config: CMTConfig):
        super().__init__(config)
        width, sizes = config.d_model, (config.d_model, config.n_heads, config.ffn, config.dropout)
        self.image_encoder = ImageEncoder(
            config.resnet, width, config.image_size, config.image_norm, config.image_positions, config.batch_norm
        )
        self.token_embedding = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.type_embedding = nn.Embedding(2, width)  # 0 text, 1 image
        self.encoder_layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.encoder_layers))
        self.encoder_norm = LayerNorm(width)
        self.decoder_layers = nn.ModuleList(DecoderLayer(*sizes) for _ in range(config.decoder_layers))
        self.source_projections = nn.ModuleList(
            SourceProjection(width, config.n_heads) for _ in range(config.decoder_layers)
        )
        self.decoder_norm = LayerNorm(width)
        self.generator = nn.Linear(width, config.vocab_size)
        self.answer_head = (
            nn.Sequential(
                nn.Linear(width, 2 * width), LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, config.n_answers)
            )
            if config.n_answers
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif module is self.token_embedding:
            init.normal_(module.weight, std=self.config.embedding_std)
            init.zeros_(module.weight[module.padding_idx])
        elif module is self.type_embedding:
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, ImageEncoder):
            if module.positions is not None:
                init.normal_(module.positions, std=0.02)
        else:
            super()._init_weights(module)

    @property
    def image_size(self) -> int:
        """Side of the crops in pixels; 0 where the model reads no images."""
        return self.config.image_size if "v" in self.config.mode else 0

    # ---- the two halves

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Token ids and their positions, same shape (…,) -> (…, D)"""
        width = self.config.d_model
        return self.token_embedding(ids) * math.sqrt(width) + sinusoidal_positions(positions, width)

    def encode(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None
    ) -> Memory:
        """Encode posts with their images, and project every decoder layer's cross-attention keys and values.

        Args:
            input_ids: (P, L) int64 post tokens, right-padded; None or L = 0 for images alone.
            attention_mask: (P, L), nonzero at real tokens; by default where `input_ids` is not padding.
            pixel_values: (P, 3, H, W), uint8 RGB crops or floats that are already normalised; None for text alone.
        """
        parts, masks = [], []
        if input_ids is not None and input_ids.shape[1] and "t" in self.config.mode:
            mask = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
            text = self.embed(input_ids, torch.arange(input_ids.shape[1], device=input_ids.device))
            parts.append(text + self.type_embedding.weight[0])
            masks.append(mask)
        if pixel_values is not None and "v" in self.config.mode:
            image = self.image_encoder(pixel_values) + self.type_embedding.weight[1]
            parts.append(image)
            masks.append(torch.ones(image.shape[:2], dtype=torch.bool, device=image.device))
        if not parts:
            raise ValueError(f"nothing to encode: mode {self.config.mode!r} needs {needed_inputs(self.config.mode)}")
        x, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)[:, None, None]
        x = self.dropout(x)
        for layer in self.encoder_layers:
            x = self._run(layer, x, mask)
        memory = self.encoder_norm(x)
        return Memory(
            last_hidden_state=memory,
            mask=mask,
            source=tuple(project(memory) for project in self.source_projections),
        )

    def decode(
        self, ids: Tensor, positions: Tensor, layout: RaggedLayout | DenseLayout, memory: Memory, cache=None
    ) -> Tensor:
        """Token ids and positions (M,) -> hidden states (M, D), before the output layer."""
        x = self.dropout(self.embed(ids, positions))
        for index, (layer, source) in enumerate(zip(self.decoder_layers, memory.source)):
            x = self._run(layer, x, layout, source, memory.mask, cache, index)
        return self.decoder_norm(x)

    def _run(self, layer: nn.Module, *args):
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer.__call__, *args)
        return layer(*args)

    # ---- training and scoring

    def forward(self, batch: Batch | None = None, **inputs) -> Tensor | Seq2SeqLMOutput:
        """A `Batch` in: the summed loss out. Keyword arguments in: a decoding step, as `generate` makes it.

        The loss of a batch with answer targets is Σ over posts of the summed binary cross-entropy of all answers,
        otherwise Σ over target tokens of the cross-entropy; the caller divides by the global count.
        """
        if batch is None:
            return self.decoding_step(**inputs)
        memory = self.encode(batch.post_ids, self.post_mask(batch), batch.images)
        if batch.answer_targets is not None:
            logits = self.classify(memory).float()
            losses = F.binary_cross_entropy_with_logits(logits, batch.answer_targets, reduction="none").sum(1)
            return (losses * batch.weights).sum()
        hidden, targets = self.decode_comments(batch, memory)
        return self.kernels.linear_cross_entropy(hidden, self.generator.weight, self.generator.bias, targets, 0.0)

    def decode_comments(self, batch: Batch, memory: Memory) -> tuple[Tensor, Tensor]:
        """Teacher forcing on all comments: hidden states (M, D) and targets (M,), ignored where the post's weight is 0."""
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

    def classify(self, memory: Memory) -> Tensor:
        """Answer logits (P, n_answers) from the first encoder output."""
        return self.answer_head(memory.last_hidden_state[:, 0])

    # ---- generation (transformers)

    def decoding_step(
        self,
        decoder_input_ids: Tensor,
        encoder_outputs: Memory | None = None,
        past_key_values=None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **_unused,
    ) -> Seq2SeqLMOutput:
        """decoder_input_ids (N, T), N a multiple of the posts -> logits (N, T, V) and the grown cache."""
        memory = (
            encoder_outputs if encoder_outputs is not None else self.encode(input_ids, attention_mask, pixel_values)
        )
        n, length = decoder_input_ids.shape
        cache = getattr(past_key_values, "self_attention_cache", past_key_values)
        start = cache.get_seq_length() if cache is not None else 0
        positions = torch.arange(start, start + length, device=decoder_input_ids.device).repeat(n)
        layout = DenseLayout(n, memory.mask.shape[0])
        hidden = self.decode(decoder_input_ids.flatten(), positions, layout, memory, cache)
        return Seq2SeqLMOutput(logits=self.generator(hidden).unflatten(0, (n, length)), past_key_values=past_key_values)

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, attention_mask=None, pixel_values=None, **kwargs):
        """transformers' `generate`; the post is encoded here, once, whatever the number of beams or samples."""
        if kwargs.get("encoder_outputs") is None:
            kwargs["encoder_outputs"] = self.encode(input_ids, attention_mask, pixel_values)
        return super().generate(**kwargs)

    def prepare_inputs_for_generation(self, decoder_input_ids: Tensor, past_key_values=None, encoder_outputs=None, **_):
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {
            "decoder_input_ids": decoder_input_ids[:, seen:],
            "past_key_values": past_key_values,
            "encoder_outputs": encoder_outputs,
        }

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=True, input_ids=None, **model_kwargs):
        # Beams and samples of a post share its memory: only the target rows multiply, in the posts' order.
        return input_ids.repeat_interleave(expand_size, dim=0), model_kwargs


def needed_inputs(mode: str) -> str:
    return {"t": "post tokens", "v": "an image"}.get(mode, "post tokens or an image")
