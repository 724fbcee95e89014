"""Self-critical training: the captions that the model samples, each weighed by how much better than the model's own
greedy caption it scores.

Rennie et al., "Self-critical Sequence Training for Image Captioning", CVPR 2017: the gradient of the expected reward is
that of Σ (baseline - reward) · log p(sample). So a step's batch gets the samples for its captions and the advantages,
reward - baseline, for factors of their losses; the engine does the rest, and divides by the number of sampled tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
from cromic_ds.tasks import Task
from cromic_ds.training.loop import Run, seeds

log = logging.getLogger(__name__)
FREQUENCIES = "scst_df.npz"  # in the run folder


@dataclass
class SelfCriticalSettings:
    """How captions are sampled, and what their CIDEr-D is compared with."""

    samples: int = 1
    """Captions sampled for each image in a step."""
    baseline: Literal["greedy", "mean"] = "greedy"
    """What a sample's reward is compared with: that of the greedy caption, or the mean of the image's other samples
    (at least 2 samples; saves the greedy decoding)."""
    temperature: float = 1.0
    """Sharpness of the sampling. Only at 1 do the samples follow the distribution that is trained, which the greedy
    baseline needs."""
    max_new_tokens: int | None = None
    """Longest sampled caption in tokens; by default the task's."""
    df_images: int = 500_000
    """Training images whose references CIDEr's document frequencies are counted from, evenly spread; 0 = all."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if self.baseline not in ("greedy", "mean"):
            raise UserError(f"scst.baseline is {self.baseline!r}: greedy or mean")
        if self.samples < 1 or (self.baseline == "mean" and self.samples < 2):
            raise UserError(
                f"scst.samples is {self.samples}: give at least 1, and at least 2 where they are each other's baseline"
            )
        if not self.temperature > 0 or (self.max_new_tokens is not None and self.max_new_tokens < 1):
            raise UserError("scst: temperature must be above 0, max_new_tokens at least 1")
        if self.temperature != 1 and self.baseline == "greedy":
            # E[∇ log p] is 0 for samples from p alone: else a baseline that is not their mean drives p away from them.
            raise UserError(
                f"scst.temperature is {self.temperature}: with the greedy baseline it must be 1; use baseline mean"
            )
        if self.df_images < 0 or self.df_images == 1:
            raise UserError(f"scst.df_images is {self.df_images}: give at least 2 images, or 0 for all")


@dataclass
class Captions:
    """What the model says about the P images of a micro-batch. Each caption is [CLS] … as generated: closed by [SEP], or
    cut at the longest length without one."""

    samples: list[list[np.ndarray]]  # (P, samples)
    greedy: list[np.ndarray] | None  # (P,), where it is the baseline


class SelfCritical:
    """The `loop.Objective` of captions: turns a step's batches into sampled captions with their advantages.

    Samples come from the full softmax, whose logarithm is trained, in evaluation mode. So tokens that are no text can be
    among them, and such a caption scores 0. Were they suppressed as elsewhere, whatever probability bad captions lose
    could go to them unpunished: in a small trial 3% became 45% in 60 steps, and the captions were ruined.
    """

    def __init__(self, settings: SelfCriticalSettings, task: Task):
        settings.check()
        self.settings = settings
        self.tokenization = task.tokenization
        self.max_new_tokens = settings.max_new_tokens or task.max_comment_tokens
        self.cider: CiderD | None = None  # from the first step on

    def __call__(self, run: Run, batches: list[Batch]) -> tuple[list[Batch], dict[str, float]]:
        """This rank's micro-batches with samples for comments; rewards and advantages over all ranks, for the log.

        What is sampled is a function of the weights and (seed, step, global micro-batch).
        """
        if self.cider is None:
            self.cider = CiderD(document_frequencies(run, self.tokenization, self.settings.df_images))
        start = time.perf_counter()
        with run.engine.full_weights() as model:
            captions = [
                self.caption(model, run.tokenizer, batch.to(run.engine.device), seed)
                for batch, seed in zip(batches, sampling_seeds(run, len(batches)))
            ]
        sampled, sums = [], np.zeros(5)
        for batch, of_batch in zip(batches, captions):
            batch, sums_here = self.reward(run, batch, of_batch)
            sampled.append(batch)
            sums += sums_here
        reward, n_samples, greedy, n_images, positive = sum_over_ranks(sums.tolist())
        values = {"reward": reward / max(n_samples, 1), "positive_advantages": positive / max(n_samples, 1)}
        if self.settings.baseline == "greedy":
            values["reward_greedy"] = greedy / max(n_images, 1)
        return sampled, {**values, "scst_seconds": time.perf_counter() - start}

    def caption(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Batch, seed: int) -> Captions:
        """Captions for the images (and posts) of a batch on the model's device, each encoded once."""
        settings, end = self.settings, tokenizer.sep_token_id
        memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
        config = generation_config(DecodingSettings(beams=1, max_new_tokens=self.max_new_tokens), tokenizer)
        greedy = None
        if settings.baseline == "greedy":
            greedy = closed(model.generate(encoder_outputs=memory, generation_config=config), end)
        config.update(
            do_sample=True,
            top_k=0,
            temperature=settings.temperature,
            suppress_tokens=None,
            num_return_sequences=settings.samples,
        )
        torch.manual_seed(seed)
        samples = closed(model.generate(encoder_outputs=memory, generation_config=config), end)
        n = settings.samples
        return Captions([samples[i : i + n] for i in range(0, len(samples), n)], greedy)

    def reward(self, run: Run, batch: Batch, captions: Captions) -> tuple[Batch, np.ndarray]:
        """The batch to train on, and sums for the log: rewards, samples, greedy rewards, images, advantages above 0.

        Images without a reference, and the blank one of an empty batch, count nowhere.
        """
        targets = [references(run.dataset, index, self.tokenization) for index in batch.indices]
        counts = np.array([bool(texts) for texts in targets])
        no_text = [i for i in run.tokenizer.all_special_ids if i != run.tokenizer.sep_token_id]
        scored = captions.samples
        if captions.greedy is not None:
            scored = [[*samples, greedy] for samples, greedy in zip(scored, captions.greedy)]
        rewards = np.zeros((len(scored), len(scored[0])))
        for i in np.flatnonzero(counts):
            texts = [self.text(run.tokenizer, ids, no_text) for ids in scored[i]]
            rewards[i] = self.cider.scores(texts, targets[i])
        sampled = rewards[:, : self.settings.samples]
        greedy = rewards[:, self.settings.samples :]  # (P, 1), or (P, 0) where it is not the baseline
        advantages = sampled - greedy if greedy.size else against_the_others(sampled)
        batch = replace(batch, weights=batch.weights * torch.from_numpy(counts))
        batch = with_comments(batch, captions.samples, advantages.ravel(), run.tokenizer.pad_token_id)
        n = counts.sum()
        return batch, np.array([sampled.sum(), n * sampled.shape[1], greedy.sum(), n, (advantages > 0).sum()])

    def text(self, tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, no_text: list[int]) -> str:
        """The segmented text of a caption; nothing, which scores 0, where one of the `no_text` tokens stands in it."""
        if np.isin(ids[1:], no_text).any():
            return ""
        return segment(decode_text(tokenizer, ids), self.tokenization)


def sampling_seeds(run: Run, accumulation: int) -> list[int]:
    """One seed for each of this rank's micro-batches, other ones than those of its dropout."""
    return [example_seed(seed, 0, 0) for seed in seeds(run, run.state.step, accumulation)]


def closed(sequences: Tensor, end: int) -> list[np.ndarray]:
    """(N, T) generated ids -> N sequences without what follows their [SEP]."""
    return [row[: (row == end).argmax() + 1] if end in row else row for row in sequences.cpu().numpy()]


def against_the_others(rewards: np.ndarray) -> np.ndarray:
    """(P, n ≥ 2) rewards -> each minus the mean of the others of its row."""
    n = rewards.shape[1]
    return (rewards - rewards.mean(axis=1, keepdims=True)) * (n / (n - 1))


def references(dataset: Dataset, index: int, tokenization: str) -> list[str]:
    """The segmented references of an image, blank ones left out; none for a blank post and for an unreadable record."""
    if index < 0:
        return []
    try:
        texts = dataset.texts(index).comments
    except UnreadableRecord:
        return []
    return [segmented for text in texts if (segmented := segment(text, tokenization))]


# ---- document frequencies, counted once per run


def document_frequencies(run: Run, tokenization: str, most: int) -> DocumentFrequencies:
    """Those of the training split, from the run folder; rank 0 counts them where they are not there yet.

    Raises:
        UserError: fewer than two images have references: every CIDEr is 0 then.
    """
    path = run.folder / FREQUENCIES
    on_main(count_into, path, run.dataset, tokenization, most)
    return DocumentFrequencies.load(path)[0]


def count_into(path: Path, dataset: Dataset, tokenization: str, most: int) -> None:
    """Write the document frequencies of `most` images (0 = all), unless the file has them."""
    source = f"{dataset.fingerprint} {dataset.split} {tokenization} {most}"
    try:
        if DocumentFrequencies.load(path)[1] == source:
            return
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        log.warning("%s cannot be read (%s): counting again", path, error)
    n = min(most, len(dataset)) if most else len(dataset)
    log.info("self-critical: counting the n-grams in the references of %d training images", n)
    start = time.perf_counter()
    frequencies = DocumentFrequencies.count(all_references(dataset, tokenization, n))
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


def all_references(dataset: Dataset, tokenization: str, n: int) -> Iterator[list[str]]:
    """The references of `n` images, evenly spread over the data set; of those that have any."""
    for i in range(n):
        if texts := references(dataset, i * len(dataset) // n, tokenization):
            yield texts
