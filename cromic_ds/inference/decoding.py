"""Generating comments from a model: settings, and posts to texts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cromic_ds.data.tokenizer import decode_text
from cromic_ds.errors import UserError

COMMENT_TOKENS = 25


@dataclass
class DecodingSettings:
    """How texts are generated."""

    beams: int = 5
    """Width of the beam search; 1 = greedy."""
    num: int = 1
    """Texts per post."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 = no limit."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability; 1 = no limit."""
    temperature: float = 1.0
    """Sharpness of sampling; below 1 sharper. Anything but 1, or top_k or top_p, means sampling instead of beams."""
    max_new_tokens: int | None = None
    """Longest text in tokens; by default the task's: 25 for comments and answers, 72 for captions."""
    length_penalty: float = 1.0
    """Exponent of the length that beam scores are divided by; above 1 favors longer texts."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size occurs twice in a text; 0 = no limit."""

    @property
    def samples(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.temperature != 1

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if self.beams < 1 or self.num < 1 or (self.max_new_tokens is not None and self.max_new_tokens < 1):
            raise UserError("decoding: beams, num and max_new_tokens must be at least 1")
        if not 0 < self.top_p <= 1 or self.top_k < 0 or self.temperature <= 0:
            raise UserError("decoding: top_p must be in (0, 1], top_k at least 0, temperature above 0")
        if not self.samples and self.num > self.beams:
            raise UserError(
                f"decoding: {self.num} texts from {self.beams} beams: use at least {self.num} beams, or sample (top_p)"
            )


def generation_config(settings: DecodingSettings, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """transformers' form of the settings. Tokens that are no text are never generated."""
    never = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id]
    sampling = {
        "do_sample": True,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "temperature": settings.temperature,
    }
    search = {"do_sample": False, "num_beams": settings.beams}
    if settings.beams > 1:
        search["length_penalty"] = settings.length_penalty
    return GenerationConfig(
        **(sampling if settings.samples else search),
        num_return_sequences=settings.num,
        max_new_tokens=settings.max_new_tokens or COMMENT_TOKENS,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        suppress_tokens=[i for i in never if i is not None],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.cls_token_id,
    )


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    post_ids: Tensor,
    images: Tensor | None,
    settings: DecodingSettings,
) -> list[list[str]]:
    """`settings.num` texts for each post. post_ids: (P, L) right-padded; images: (P, 3, H, W) uint8."""
    device = next(model.parameters()).device
    sequences = model.generate(
        input_ids=post_ids.to(device),
        pixel_values=None if images is None else images.to(device),
        generation_config=generation_config(settings, tokenizer),
    )
    texts = [decode_text(tokenizer, ids) for ids in sequences.tolist()]
    return [texts[i : i + settings.num] for i in range(0, len(texts), settings.num)]
