"""CroMIC-CMT: a post and its image, encoded together, and a decoder that generates the comments people wrote under them.

Legend: P posts, L post tokens, K image tokens, S = L + K source tokens, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.models.resnet.modeling_resnet import ResNetStage

from cromic_ds.batch import Batch
from cromic_ds.models.cmt.config import CMTConfig
from cromic_ds.models.cmt.layers import EncoderLayer, PooledGridEncoder
from cromic_ds.models.common.decoder import CommentDecoder, Memory, answer_head, needed_inputs
from cromic_ds.models.common.flops import attention_flops, image_flops, load_of, weights_of
from cromic_ds.models.common.kernels import LayerNorm
from cromic_ds.models.common.transformer import DecoderLayer


class CMTModel(CommentDecoder, PreTrainedModel, GenerationMixin):
    """Text and image tokens through one encoder, and a decoder that reads it."""

    config: CMTConfig
    config_class = CMTConfig
    base_model_prefix = ""
    _input_embed_layer = "token_embedding"

    # ZeRO-3 gathers each of these as a whole, in few large messages instead of one for every small module inside.
    gathered_whole = (ResNetStage, EncoderLayer, DecoderLayer)
    compiled = (EncoderLayer, DecoderLayer)  # by torch.compile, each class once for any number of layers

    def __init__(self, config: CMTConfig):
        super().__init__(config)
        width, sizes = config.d_model, (config.d_model, config.n_heads, config.ffn, config.dropout)
        self.image_encoder = PooledGridEncoder(config)
        self.token_embedding = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.type_embedding = nn.Embedding(2, width)  # 0 text, 1 image
        self.encoder_layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.encoder_layers))
        self.encoder_norm = LayerNorm(width)
        self.add_decoder(*sizes, config.decoder_layers, config.vocab_size)
        self.answer_head = answer_head(width, config.n_answers)
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif module is self.token_embedding:
            init.normal_(self.token_embedding.weight, std=self.config.embedding_std)
            init.zeros_(self.token_embedding.weight[self.token_embedding.padding_idx])
        elif module is self.type_embedding:
            init.normal_(self.type_embedding.weight, std=0.02)
        elif isinstance(module, PooledGridEncoder):
            if module.positions is not None:
                init.normal_(module.positions, std=0.02)
        else:
            super()._init_weights(module)

    def encode(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None
    ) -> Memory:
        """Return posts with their images as the decoder reads them."""
        memory, mask = self.encode_source(input_ids, attention_mask, pixel_values)
        source = tuple(project(memory) for project in self.source_projections)
        return Memory(last_hidden_state=memory, mask=mask, source=source)

    def encode_source(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the states of posts with their images, (P, S, D), and which tokens may be read, (P, 1, 1, S)."""
        parts, masks = [], []
        if input_ids is not None and "t" in self.config.mode:
            # This also runs without a token: under ZeRO-3 all ranks must use the same weights in the same order, and the post
            # that fills up a batch has text where captions have none.
            mask = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
            text = self.embed(input_ids, torch.arange(input_ids.shape[1], device=input_ids.device))
            parts.append(text + self.type_embedding.weight[0])
            masks.append(mask)
        if pixel_values is not None and "v" in self.config.mode:
            image = self.image_encoder(pixel_values) + self.type_embedding.weight[1]
            parts.append(image)
            masks.append(torch.ones(image.shape[:2], dtype=torch.bool, device=image.device))
        if not sum(part.shape[1] for part in parts):
            raise ValueError(f"nothing to encode: mode {self.config.mode!r} needs {needed_inputs(self.config.mode)}")
        x, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)[:, None, None]
        x = self.dropout(x)
        for layer in self.encoder_layers:
            x = self._run(layer, x, mask)
        return self.encoder_norm(x), mask

    def answer_logits(self, batch: Batch) -> Tensor:
        """Return logits (P, n_answers), from the first encoder state."""
        assert self.answer_head is not None
        memory, _ = self.encode_source(batch.post_ids, self.post_mask(batch), batch.images)
        return self.answer_head(memory[:, 0])

    def unused(self) -> list[nn.Module]:
        return [] if self.answer_head is None else self.decoder_modules()

    def flops_formula(self) -> Callable[[Batch], float]:
        config, image, decoder = self.config, image_flops(self), self.decoder_flops()
        encoder, answers = 2 * weights_of(self.encoder_layers), 2 * weights_of(self.answer_head)
        image_tokens, width, layers = self.image_encoder.n_tokens if image else 0, config.d_model, config.encoder_layers

        def flops(batch: Batch) -> float:
            load = load_of(batch, "t" in config.mode, image_tokens)
            attention = attention_flops(width, layers, load.source * load.mean_source)
            source = load.posts * image + encoder * load.source + attention
            return source + (decoder(load) if batch.answer_targets is None else answers * load.posts)

        return flops
