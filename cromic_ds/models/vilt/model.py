"""ViLT (Kim et al. 2021): a post's tokens and its image's patches through one pre-norm transformer, for comments.

The published model generates no text; that part is our interpretation. Comments come from CroMIC-CMT's decoder on the encoded
post, or from the encoder itself under a prefix mask (Dong et al. 2019), where the comment is BERT's second segment, behind the
post, and the masked-word head is the output. Layers and names of weights are those of transformers' ViLT.

Legend: P posts, Q posts under a wrong image, L post tokens, K image tokens, S = L + K source tokens, M comment tokens, D width.
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.models.vilt.modeling_vilt import TextEmbeddings, ViltPooler

from cromic_ds.batch import Batch
from cromic_ds.errors import UserError
from cromic_ds.models.common.decoder import CommentDecoder, Memory, answer_head, needed_inputs
from cromic_ds.models.common.flops import attention_flops, image_flops, load_of, weights_of
from cromic_ds.models.common.kernels import IGNORE, LayerNorm
from cromic_ds.models.common.transformer import DecoderLayer, KeyValue, Layout, RaggedLayout
from cromic_ds.models.vilt.config import ViLTConfig
from cromic_ds.models.vilt.draws import generators, masked_words, swapped_images
from cromic_ds.models.vilt.layers import MaskedWordHead, PatchEncoder, PrefixLayer, prefix_mask


class ViLTModel(CommentDecoder, PreTrainedModel, GenerationMixin):
    """One encoder for text and patches; for comments the CMT decoder, or the encoder again under a prefix mask.

    The loss of a training batch is Σ NLL of the comments' target tokens + mlm_weight · Σ NLL of the posts' masked tokens
    + itm_weight · Σ over posts of the cross-entropy of whether image and text belong together. The caller divides all of it by
    the number of the comments' target tokens in the global batch, so it does not depend on how that batch is split into
    micro-batches of even size (`swapped_images`). In evaluation the loss is the comments' NLL alone.
    """

    config: ViLTConfig
    config_class = ViLTConfig
    base_model_prefix = ""

    # ZeRO-3 gathers each of these as a whole, in few large messages instead of one for every small module inside.
    gathered_whole = (PrefixLayer, DecoderLayer)
    compiled = (PrefixLayer, DecoderLayer)  # by torch.compile, each class once for any number of layers
    encoder_heads = ("pooler", "masked_word_head", "match_head", "answer_head")

    def __init__(self, config: ViLTConfig):
        super().__init__(config)
        width, sizes = config.d_model, config.library()
        self.image_encoder = PatchEncoder(sizes, config.image_size)
        self.text_embeddings = TextEmbeddings(sizes)  # words, positions and segments, layer-normed
        # These buffers serve calls that leave ids out, which do not exist here, and no checkpoint contains them.
        del self.text_embeddings.position_ids, self.text_embeddings.token_type_ids
        self.type_embedding = nn.Embedding(2, width)  # 0 text, 1 image
        self.encoder_layers = nn.ModuleList(PrefixLayer(sizes) for _ in range(config.encoder_layers))
        self.encoder_norm = LayerNorm(width, eps=sizes.layer_norm_eps)
        self.pooler = ViltPooler(sizes)
        self.masked_word_head = MaskedWordHead(sizes)
        self.match_head = nn.Linear(width, 2)  # 0: the image is another post's, 1: it is the post's own
        self.answer_head = answer_head(width, config.n_answers)
        if not self.is_prefix:
            decoder = (config.decoder_heads, config.decoder_ffn, config.dropout, config.decoder_layers)
            self.add_decoder(width, *decoder, config.vocab_size)
        else:
            # A layer is called for posts and again for comments, but DeepSpeed reduces the gradients of a module that it
            # gathers as a whole after one call. So linear layers are gathered one by one; the list must not be empty.
            self.gathered_whole = (ViltPooler,)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.modules():
            if type(module) is nn.LayerNorm:
                module.__class__ = LayerNorm  # which computes with the chosen kernel
        self.continues = np.zeros(config.vocab_size, bool)  # until `use_tokenizer` every token is a word
        self.gradient_checkpointing = False
        self.post_init()

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep which tokens continue a word, for masking whole words. This is not a part of the weights or of the config."""
        tokens = tokenizer.convert_ids_to_tokens(list(range(self.config.vocab_size)))
        self.continues = np.array([token.startswith("##") for token in cast(list[str], tokens)])

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.embedding_std
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, PatchEncoder):
            init.normal_(module.cls_token, std=std)
            init.normal_(module.position_embeddings, std=std)
        elif isinstance(module, MaskedWordHead):
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_embeddings.word_embeddings

    def set_input_embeddings(self, embedding: nn.Embedding) -> None:
        self.text_embeddings.word_embeddings = embedding

    @property
    def is_prefix(self) -> bool:
        return self.config.decoder == "prefix"

    # ---- encoding posts

    def encode(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None
    ) -> Memory:
        """Return posts with their images as comments read them; the arguments are those of `CommentDecoder.generate`."""
        return self.memory(*self.encode_source(input_ids, attention_mask, pixel_values))

    def encode_source(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pictures: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, list[KeyValue]]:
        """Return the states of posts with their images, (P, S, D); which tokens may be read, (P, 1, 1, S); and for a prefix
        mask the keys and values of each layer. `pictures`: (P,) index of the image that each post reads, where there are
        fewer images than posts."""
        config, parts, masks = self.config, [], []
        reads_image = pixel_values is not None and "v" in config.mode
        if input_ids is not None and "t" in config.mode and (input_ids.shape[1] or reads_image):
            mask = input_ids != config.pad_token_id if attention_mask is None else attention_mask.bool()
            if not input_ids.shape[1]:
                # One token that nothing reads: every rank must call the same modules (ZeRO-3).
                input_ids, mask = F.pad(input_ids, (0, 1), value=config.pad_token_id), F.pad(mask, (0, 1))
            self.check_length(input_ids.shape[1])
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            parts.append(self.embed_text(input_ids, positions[None], segment=0))
            masks.append(mask)
        if reads_image:
            image = self.image_encoder(pixel_values) + self.type_embedding.weight[1]
            parts.append(image if pictures is None else image[pictures])
            masks.append(torch.ones(parts[-1].shape[:2], dtype=torch.bool, device=image.device))
        if not parts:
            raise ValueError(f"nothing to encode: mode {config.mode!r} needs {needed_inputs(config.mode)}")
        x, mask, source = torch.cat(parts, dim=1), torch.cat(masks, dim=1)[:, None, None], []
        for layer in self.encoder_layers:
            x, *keys_values = layer(x, mask)
            if self.is_prefix:
                source.append(tuple(keys_values))
        return self.encoder_norm(x), mask, source

    def embed_text(self, ids: Tensor, positions: Tensor, segment: int) -> Tensor:
        """Token ids (B, L) and positions that broadcast with them -> (B, L, D). Segment 0 is the post, 1 a comment."""
        return self.text_embeddings(ids, torch.full_like(ids, segment), positions) + self.type_embedding.weight[0]

    def check_length(self, n_tokens: int) -> None:
        """Raise UserError for a text of more tokens than there are learned positions."""
        if n_tokens > self.config.text_positions:
            cause = f"a text of {n_tokens} tokens, and the model has {self.config.text_positions} positions"
            raise UserError(f"{cause}: train with a larger model.text_positions, or with shorter texts")

    def memory(self, hidden: Tensor, mask: Tensor, source: list[KeyValue]) -> Memory:
        if not self.is_prefix:
            source = [project(hidden) for project in self.source_projections]
        return Memory(last_hidden_state=hidden, mask=mask, source=tuple(source))

    # ---- comments

    def decode(
        self, ids: Tensor, positions: Tensor, layout: Layout, memory: Memory, cache: Cache | None = None
    ) -> Tensor:
        if not self.is_prefix:
            return super().decode(ids, positions, layout, memory, cache)
        past = cache.get_seq_length() if cache is not None else 0
        self.check_length(past + (layout.row_length if isinstance(layout, RaggedLayout) else len(ids) // layout.n_rows))
        mask = prefix_mask(layout, memory.mask, len(ids), past)
        x = self.embed_text(ids[None], positions[None], segment=1)[0]
        for index, (layer, source) in enumerate(zip(self.encoder_layers, memory.source)):
            x, *_ = layer(x, mask, layout, source, cache, index)
        return self.masked_word_head(self.encoder_norm(x))

    def output_layer(self) -> tuple[Tensor, Tensor]:
        return self.word_output() if self.is_prefix else super().output_layer()

    def word_output(self) -> tuple[Tensor, Tensor]:
        """Weight (V, D), which is the word embedding, and bias (V,) behind the masked-word head."""
        return self.text_embeddings.word_embeddings.weight, self.masked_word_head.bias

    # ---- training

    def draw(self, batch: Batch, seed: int) -> Batch:
        """Draw masked words and swapped images, if the batch trains on comments; answers and self-critical training
        (`comment_weights`) need no draws."""
        config = self.config
        if batch.answer_targets is not None or batch.comment_weights is not None:
            return batch
        draws, drawn = generators(batch, seed), {}
        if self.masks_words:
            mask, special = config.mask_token_id, (config.pad_token_id, config.bos_token_id, config.eos_token_id)
            drawn |= masked_words(
                batch, draws, rate=config.mask_rate, mask_id=mask, special_ids=special, continues=self.continues
            )
        if self.swaps_images:
            drawn |= swapped_images(batch, draws, rate=config.swap_rate)
        return dataclasses.replace(batch, drawn=drawn)

    @property
    def masks_words(self) -> bool:
        return self.config.mlm_weight > 0 and "t" in self.config.mode

    @property
    def swaps_images(self) -> bool:
        return self.config.itm_weight > 0 and self.config.mode == "t+v"

    def text_loss(self, batch: Batch) -> Tensor:
        """Compute all losses from one pass of the encoder over the posts, swapped posts and posts with masked words."""
        n, drawn = batch.n_posts, batch.drawn
        own = torch.arange(n, device=batch.post_ids.device)
        # Of each pass: token ids, the posts that they are from, and the posts whose images they get.
        passes = [(batch.post_ids, own, own)]
        if "swapped" in drawn:
            passes.append((batch.post_ids[drawn["swapped"]], drawn["swapped"], drawn["partners"]))
        if "masked_ids" in drawn:
            passes.append((drawn["masked_ids"], own, own))
        ids, posts, pictures = (torch.cat(parts) for parts in zip(*passes))
        hidden, visible, source = self.encode_source(ids, self.post_mask(batch)[posts], batch.images, pictures)
        memory = self.memory(hidden[:n], visible[:n], [(k[:n], v[:n]) for k, v in source])
        loss = self.token_loss(batch, *self.decode_comments(batch, memory))
        if "masked_rows" in drawn:
            at_masks = hidden[-n:, : max(batch.post_ids.shape[1], 1)].flatten(0, 1)[drawn["masked_rows"]]
            states = self.masked_word_head(at_masks)  # first: under ZeRO-3 this call gathers the head's bias
            weight, bias = self.word_output()
            word_loss = self.kernels.linear_cross_entropy(states, weight, bias, drawn["masked_targets"], 0.0)
            loss = loss + self.config.mlm_weight * word_loss
        if "swapped" in drawn:
            pooled = self.pooler(hidden[: n + len(drawn["swapped"])])  # (P + Q, D)
            logits = self.match_head(pooled)[drawn["match_rows"]].float()
            match_loss = F.cross_entropy(logits, drawn["match_targets"], ignore_index=IGNORE, reduction="sum")
            loss = loss + self.config.itm_weight * match_loss
        return loss

    def answer_logits(self, batch: Batch) -> Tensor:
        """Return logits (P, n_answers), from the pooled first token: the text's [CLS], or the image's where no text is read."""
        assert self.answer_head is not None
        hidden, *_ = self.encode_source(batch.post_ids, self.post_mask(batch), batch.images)
        return self.answer_head(self.pooler(hidden))

    def unused(self) -> list[nn.Module]:
        classifies = self.answer_head is not None
        masks, swaps = self.masks_words and not classifies, self.swaps_images and not classifies
        reads_words = "t" in self.config.mode or (self.is_prefix and not classifies)
        text = self.text_embeddings
        unused = [
            (self.image_encoder, "v" not in self.config.mode),
            (text.word_embeddings, classifies and not reads_words),
            (text.position_embeddings, not reads_words),
            (text.token_type_embeddings, not reads_words),
            (text.LayerNorm, not reads_words),
            (self.pooler, not (classifies or swaps)),
            (self.match_head, not swaps),
            (self.masked_word_head, not (masks or (self.is_prefix and not classifies))),
        ]
        if not self.is_prefix:
            unused += [(module, classifies) for module in self.decoder_modules()]
        return [module for module, is_unused in unused if is_unused]

    def flops_formula(self) -> Callable[[Batch], float]:
        """Return a function from a batch to the FLOPs of its forward pass, the passes of the drawn losses included."""
        config, image = self.config, image_flops(self)
        width, layers, text = config.d_model, config.encoder_layers, "t" in config.mode
        image_tokens = self.image_encoder.n_tokens if image else 0
        encoder, pooler = 2 * weights_of(self.encoder_layers), 2 * weights_of(self.pooler)
        match, answers = 2 * weights_of(self.match_head), 2 * weights_of(self.answer_head)
        word = 2 * weights_of(self.masked_word_head, self.text_embeddings.word_embeddings)
        decoder = None if self.is_prefix else self.decoder_flops()

        def flops(batch: Batch) -> float:
            load, drawn = load_of(batch, text, image_tokens), batch.drawn
            lengths = (batch.post_lengths * text + image_tokens) * batch.weights
            passes = [lengths] + [lengths] * ("masked_ids" in drawn)
            n_matches = 0.0
            if "swapped" in drawn:
                passes.append(lengths[drawn["swapped"]])
                n_matches = load.posts + float(batch.weights[drawn["swapped"]].sum())
            lengths = torch.cat(passes)
            tokens, pairs = float(lengths.sum()), float(lengths.square().sum())
            total = load.posts * image + (pooler + match) * n_matches
            if "masked_rows" in drawn:
                total += word * float((drawn["masked_targets"] != IGNORE).sum())
            if batch.answer_targets is not None:
                total += (pooler + answers) * load.posts
            elif decoder is not None:
                total += decoder(load)
            else:
                tokens, total = tokens + load.targets, total + word * load.targets
                pairs += load.targets * (load.mean_source + load.mean_own)
            return total + encoder * tokens + attention_flops(width, layers, pairs)

        return flops
