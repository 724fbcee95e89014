"""A loaded export: `load` is the way to use a trained model from Python."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cromic_ds.data.images import BadImage, training_image
from cromic_ds.data.limits import POST_TOKENS
from cromic_ds.data.tokenizer import encode
from cromic_ds.errors import UserError
from cromic_ds.inference.decoding import decoding_for, generate_texts
from cromic_ds.inference.exports import load_export, read_answer_vocabulary, weights_fingerprint
from cromic_ds.inference.settings import DecodingSettings, find_task
from cromic_ds.ranks.launcher import local_device
from cromic_ds.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from cromic_ds.models.registry import CommentModel


class EncodedPost(NamedTuple):
    """What the model reads of a post."""

    ids: list[int]  # token ids; empty if there is no text, or the model reads none
    image: Tensor | None  # (3, S, S) uint8; None if there is no picture, or the model reads none


@dataclass
class LoadedExport:
    """A model on the best device of this machine, with all that generating and scoring need. `load` makes it.

    export = cromic_ds.load("runs/pretrain_cmt/export")
    export.generate("我家的猫", "cat.jpg")  # -> ["真可爱"]
    """

    path: Path
    model: CommentModel
    tokenizer: PreTrainedTokenizerFast
    facts: dict[str, Any]  # of the export: task, token limits, tokenizer fingerprint, step
    precision: str  # bf16, fp16 or fp32
    autocast: torch.dtype | None  # None if the precision is fp32
    answers: list[str] | None = None  # the vocabulary of its answer head

    @property
    def task(self) -> Task:
        """The task that the model was trained for. Raises UserError if this version does not know it."""
        return find_task(self.facts.get("task", "comments"), str(self.path))

    @property
    def image_size(self) -> int:
        """Side of the image crops in pixels; 0 if the model reads no images."""
        return self.model.image_size

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes the model from others, wherever it is stored: a hash of its weights, and its facts."""
        return {"weights": weights_fingerprint(self.path), "precision": self.precision, **self.facts}

    @contextlib.contextmanager
    def running(self) -> Iterator[CommentModel]:
        """Yield the model without gradients and under autocast."""
        device, dtype, enabled = self.model.device.type, self.autocast or torch.bfloat16, self.autocast is not None
        with torch.inference_mode(), torch.autocast(device, dtype=dtype, enabled=enabled):
            yield self.model

    def generate(
        self, post: str = "", image: str | Path | None = None, decoding: DecodingSettings | None = None
    ) -> list[str]:
        """Return `decoding.num` texts for a post and its picture; either can be left out. Raises UserError as `encode_post`."""
        return self.generate_many([self.encode_post(post, image)], decoding or DecodingSettings())[0]

    def generate_many(self, posts: Sequence[EncodedPost], decoding: DecodingSettings) -> list[list[str]]:
        """Return `decoding.num` texts for each post; all posts are decoded together."""
        decoding = decoding_for(self.task, decoding)
        texts: list[list[str]] = [[] for _ in posts]
        # Posts with and without a picture make batches of different shape.
        for pictured in (True, False):
            rows = [i for i, post in enumerate(posts) if (post.image is not None) == pictured]
            if not rows:
                continue
            longest = max(len(posts[i].ids) for i in rows)
            padded = [posts[i].ids + [self.tokenizer.pad_token_id] * (longest - len(posts[i].ids)) for i in rows]
            post_ids = torch.tensor(padded, dtype=torch.long).view(len(rows), longest)
            crops = [image for i in rows if (image := posts[i].image) is not None]
            images = torch.stack(crops) if pictured else None
            with self.running() as model:
                generated = generate_texts(model, self.tokenizer, post_ids, images, decoding)
            for i, of_post in zip(rows, generated):
                texts[i] = of_post
        return texts

    def encode_post(self, post: str = "", image: str | Path | None = None) -> EncodedPost:
        """Return token ids and image crop of a post, as far as the model reads them.

        Raises UserError if the picture cannot be used, or there is nothing that the model reads.
        """
        mode, crop, ids = self.model.config.mode, None, []
        if image and "v" in mode:
            try:
                pixels = training_image(Path(image).read_bytes(), self.image_size)
            except OSError as error:
                raise UserError(f"{image}: cannot be read ({error.strerror})") from None
            except BadImage as error:
                raise UserError(f"{image}: {error}") from None
            crop = torch.tensor(pixels).permute(2, 0, 1)  # a copy: the decoder's array is read-only
        if post and "t" in mode:
            ids = encode(self.tokenizer, [post], self.facts.get("max_post_tokens", POST_TOKENS))[0].tolist()
        if not ids and crop is None:
            raise UserError("neither a picture nor a post that the model reads")
        return EncodedPost(ids, crop)


def load(path: str | Path, precision: str = "auto") -> LoadedExport:
    """Load an export to compute in bf16, fp16, fp32, or auto: the fastest that the device computes natively.

    Raises UserError if `path` is no export, or the precision does not work on this machine.
    """
    from cromic_ds.models.common.kernels import install, select
    from cromic_ds.models.common.precision import AUTOCAST, choose_precision

    device = local_device()
    chosen = choose_precision(precision, device)
    model, tokenizer, facts = load_export(path)
    install(model, select(device))
    autocast = getattr(torch, AUTOCAST[chosen]) if chosen in AUTOCAST else None
    return LoadedExport(Path(path), model, tokenizer, facts, chosen, autocast, read_answer_vocabulary(Path(path)))
