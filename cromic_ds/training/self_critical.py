"""Self-critical training: captions that the model samples, each weighted by how much better it scores than the model's own
greedy caption.

Rennie et al., "Self-critical Sequence Training for Image Captioning", CVPR 2017: the gradient of the expected reward is
that of Σ (baseline - reward) · log p(sample). So the samples replace the captions of a step's batch, and the advantages,
reward - baseline, become factors of their losses. The engine does the rest, and divides by the number of sampled tokens.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cromic_ds.batch import Batch
from cromic_ds.data.collate import with_comments
from cromic_ds.data.dataset import Dataset, UnreadableRecord
from cromic_ds.data.order import example_seed
from cromic_ds.data.tokenizer import decode_text
from cromic_ds.errors import UserError
from cromic_ds.inference.decoding import generation_config
from cromic_ds.inference.settings import DecodingSettings
from cromic_ds.metrics.cider_d import CiderD, DocumentFrequencies
from cromic_ds.metrics.segment import segment
from cromic_ds.ranks.collectives import on_main, sum_over_ranks
from cromic_ds.run_folder import RunFolder
from cromic_ds.tasks import Task
from cromic_ds.training.learner import Learner

if TYPE_CHECKING:
    from cromic_ds.models.registry import CommentModel

log = logging.getLogger(__name__)


@dataclass
class SelfCriticalSettings:
    """How captions are sampled, and what their CIDEr-D is compared with."""

    samples: int = 1
    """Captions sampled for each image in a step."""
    baseline: Literal["greedy", "mean"] = "greedy"
    """What the reward of a sample is compared with: greedy = that of the greedy caption; mean = the mean of the image's other
    samples (needs at least 2 samples; saves the greedy decoding)."""
    temperature: float = 1.0
    """Temperature of the sampling. Only at 1 do the samples follow the distribution that is trained, which the greedy
    baseline needs."""
    max_new_tokens: int | None = None
    """Longest sampled caption in tokens; null = the task's."""
    df_images: int | None = 500_000
    """Training images, evenly spread, whose references CIDEr's document frequencies are counted from; null = all."""

    def check(self) -> None:
        if self.samples < 1 or (self.baseline == "mean" and self.samples < 2):
            raise UserError(
                f"scst.samples is {self.samples}: give at least 1, and at least 2 with baseline mean, where each is compared "
                "with the others"
            )
        if not self.temperature > 0 or (self.max_new_tokens is not None and self.max_new_tokens < 1):
            raise UserError("scst: temperature must be above 0, max_new_tokens at least 1")
        if self.temperature != 1 and self.baseline == "greedy":
            # E[∇ log p] is 0 only for samples from p. For others, a baseline that is not their mean drives p away from them.
            raise UserError(
                f"scst.temperature is {self.temperature}: with the greedy baseline it must be 1; use baseline mean"
            )
        if self.df_images is not None and self.df_images < 2:
            raise UserError(f"scst.df_images is {self.df_images}: give at least 2 images, or null for all")


@dataclass
class SelfCritical:
    """The `Objective` of captions: replaces the captions of a step's batches with sampled ones and their advantages.

    Samples come from the full softmax, whose logarithm is trained, in evaluation mode. So they can contain special tokens that
    are not text, and such a caption scores 0. If these tokens were suppressed, as in other decoding, the probability that bad
    captions lose could move to them unpunished: in a small trial their share grew from 3% to 45% in 60 steps, and the captions
    were ruined.
    """

    settings: SelfCriticalSettings
    task: Task
    folder: RunFolder
    dataset: Dataset
    tokenizer: PreTrainedTokenizerFast
    cider: CiderD | None = None  # made in the first step

    def __post_init__(self) -> None:
        self.not_text = [i for i in self.tokenizer.all_special_ids if i != self.tokenizer.sep_token_id]

    def __call__(self, learner: Learner, batches: list[Batch]) -> tuple[list[Batch], dict[str, float]]:
        """Return this rank's micro-batches with sampled captions, and the mean reward and the like over all ranks, for the log.

        What is sampled is a function of the weights and (seed, step, global micro-batch).
        """
        if self.cider is None:
            path = self.folder.document_frequencies
            on_main(count_document_frequencies, path, self.dataset, self.task.tokenization, self.settings.df_images)
            self.cider = CiderD(DocumentFrequencies.load(path)[0])
        start, device = time.perf_counter(), learner.engine.device
        # The seeds differ from those of the dropout.
        seeds = [example_seed(seed, 0, 0) for seed in learner.micro_batch_seeds()]
        with learner.engine.full_weights() as model:
            captions = [self.caption(model, batch.to(device), seed) for batch, seed in zip(batches, seeds)]
        rewarded = [self.reward(batch, *of_batch, self.cider) for batch, of_batch in zip(batches, captions)]
        sums = np.sum([of_batch for _, of_batch in rewarded], axis=0)
        reward, n_samples, greedy, n_images, positive = sum_over_ranks(sums.tolist())
        values = {"reward": reward / max(n_samples, 1), "positive_advantages": positive / max(n_samples, 1)}
        if self.settings.baseline == "greedy":
            values["reward_greedy"] = greedy / max(n_images, 1)
        return [batch for batch, _ in rewarded], {**values, "scst_seconds": time.perf_counter() - start}

    def caption(
        self, model: CommentModel, batch: Batch, seed: int
    ) -> tuple[list[list[np.ndarray]], list[np.ndarray] | None]:
        """Return (P, samples) sampled captions of a batch on the model's device, and (P,) greedy ones if they are the baseline.

        Each image is encoded once. A caption is [CLS] … [SEP], without [SEP] if it was cut at the longest length.
        """
        settings, end, n = self.settings, cast(int, self.tokenizer.sep_token_id), self.settings.samples
        memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
        longest = settings.max_new_tokens or self.task.max_comment_tokens
        config = generation_config(DecodingSettings(beams=1, max_new_tokens=longest), self.tokenizer)
        greedy = None
        if settings.baseline == "greedy":
            greedy = closed(model.generate(encoder_outputs=memory, generation_config=config), end)
        config.update(
            do_sample=True, top_k=0, temperature=settings.temperature, suppress_tokens=None, num_return_sequences=n
        )
        torch.manual_seed(seed)
        samples = closed(model.generate(encoder_outputs=memory, generation_config=config), end)
        return [samples[i : i + n] for i in range(0, len(samples), n)], greedy

    def reward(
        self, batch: Batch, samples: list[list[np.ndarray]], greedy: list[np.ndarray] | None, cider: CiderD
    ) -> tuple[Batch, np.ndarray]:
        """Return the batch to train on, and sums for the log: rewards, samples, greedy rewards, images, advantages above 0.

        Images without a reference, and the blank image of an empty batch, have no weight and are not counted.
        """
        targets = [references_of(self.dataset, index, self.task.tokenization) for index in batch.indices]
        counts = np.array([bool(texts) for texts in targets])
        scored = samples if greedy is None else [[*sampled, best] for sampled, best in zip(samples, greedy)]
        rewards = np.zeros((len(scored), len(scored[0])))
        for i in np.flatnonzero(counts):
            rewards[i] = cider.scores([self.text(ids) for ids in scored[i]], targets[i])
        sampled, base = np.split(rewards, [self.settings.samples], axis=1)  # base is (P, 1), or (P, 0) without `greedy`
        advantages = sampled - base if base.size else against_the_others(sampled)
        batch = replace(batch, weights=batch.weights * torch.from_numpy(counts))
        batch = with_comments(batch, samples, advantages.ravel(), cast(int, self.tokenizer.pad_token_id))
        n = counts.sum()
        return batch, np.array([sampled.sum(), n * sampled.shape[1], base.sum(), n, (advantages > 0).sum()])

    def text(self, ids: np.ndarray) -> str:
        """Return the segmented text of a caption; empty, which scores 0, if it contains a token that is not text."""
        if np.isin(ids[1:], self.not_text).any():
            return ""
        return segment(decode_text(self.tokenizer, ids), self.task.tokenization)


def closed(sequences: Tensor, end: int) -> list[np.ndarray]:
    """(N, T) generated ids -> N sequences, each up to and including its first `end`."""
    return [row[: (row == end).argmax() + 1] if end in row else row for row in sequences.cpu().numpy()]


def against_the_others(rewards: np.ndarray) -> np.ndarray:
    """(P, n ≥ 2) rewards -> each minus the mean of the others in its row."""
    n = rewards.shape[1]
    return (rewards - rewards.mean(axis=1, keepdims=True)) * (n / (n - 1))


def references_of(dataset: Dataset, index: int, tokenization: str) -> list[str]:
    """Return the segmented references of an image without empty ones; [] for a blank post and for an unreadable record."""
    if index < 0:
        return []
    try:
        texts = dataset.texts(index).comments
    except UnreadableRecord:
        return []
    return [segmented for text in texts if (segmented := segment(text, tokenization))]


def count_document_frequencies(path: Path, dataset: Dataset, tokenization: str, limit: int | None) -> None:
    """Write the document frequencies of up to `limit` images, evenly spread over the data set, unless the file has them.

    Raises UserError if fewer than two images have references, so that every CIDEr is 0.
    """
    source = f"{dataset.fingerprint} {dataset.split} {tokenization} {limit}"
    try:
        if DocumentFrequencies.load(path)[1] == source:
            return
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        log.warning("%s cannot be read (%s): counting again", path, error)
    size = len(dataset)
    n = size if limit is None else min(limit, size)
    log.info("self-critical: counting the n-grams in the references of %d training images", n)
    start = time.perf_counter()
    of_images = (references_of(dataset, i * size // n, tokenization) for i in range(n))
    frequencies = DocumentFrequencies.count(texts for texts in of_images if texts)
    if frequencies.n_images < 2:
        raise UserError(
            f"self-critical training needs references, and {frequencies.n_images} of {n} images in split "
            f"{dataset.split!r} have any: CIDEr of fewer than two images is 0"
        )
    frequencies.save(path, source)
    log.info(
        "document frequencies: %d images with references, %d n-grams of more than one image, %.1f MB, %.1f s",
        frequencies.n_images,
        len(frequencies.ngrams) - 1,
        (frequencies.ngrams.nbytes + frequencies.counts.nbytes) / 1e6,
        time.perf_counter() - start,
    )
