"""Generating texts: from settings to transformers' generation config, and from token ids of posts to texts."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from cromic_ds.data.limits import COMMENT_TOKENS
from cromic_ds.data.tokenizer import decode_text
from cromic_ds.inference.settings import DecodingSettings
from cromic_ds.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from cromic_ds.models.registry import CommentModel


def decoding_for(task: Task, settings: DecodingSettings) -> DecodingSettings:
    """Return the decoding part of the settings, with the task's maximum length if they set none."""
    values = {field.name: getattr(settings, field.name) for field in fields(DecodingSettings)}
    values["max_new_tokens"] = settings.max_new_tokens or task.max_comment_tokens
    return DecodingSettings(**values)


def generation_config(settings: DecodingSettings, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """Return the settings as transformers takes them. Special tokens other than [SEP] are never generated."""
    from transformers import GenerationConfig

    never = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id]
    how: dict[str, Any] = {"do_sample": False, "num_beams": settings.beams}
    if settings.samples:
        # transformers takes 0, not None, for no limit: None selects its default of 50.
        how = {"do_sample": True, "top_k": settings.top_k or 0, "top_p": settings.top_p}
        how["temperature"] = settings.temperature
    elif settings.beams > 1:
        how["length_penalty"] = settings.length_penalty
    return GenerationConfig(
        **how,
        num_return_sequences=settings.num,
        max_new_tokens=settings.max_new_tokens or COMMENT_TOKENS,
        no_repeat_ngram_size=settings.no_repeat_ngram_size or 0,
        suppress_tokens=[i for i in never if i is not None],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.cls_token_id,
    )


def generate_texts(
    model: CommentModel,
    tokenizer: PreTrainedTokenizerFast,
    post_ids: Tensor,
    images: Tensor | None,
    settings: DecodingSettings,
) -> list[list[str]]:
    """Return `settings.num` texts for each post: `post_ids` (P, L), right-padded; `images` (P, 3, H, W) uint8, None without."""
    sequences = model.generate(
        input_ids=post_ids.to(model.device),
        pixel_values=None if images is None else images.to(model.device),
        generation_config=generation_config(settings, tokenizer),
    )
    texts = [decode_text(tokenizer, ids) for ids in sequences.tolist()]
    return [texts[i : i + settings.num] for i in range(0, len(texts), settings.num)]
