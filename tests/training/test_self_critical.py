"""Self-critical training: what is sampled, what it is worth, what its gradient is, and that it pays."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.launching import Job
from helpers.paths import HELPERS
from helpers.scst_world import CAPTIONS, TASK, Pictures, examples, make_model, micro_batches, special, world_tokenizer
from pycocoevalcap.cider.cider import Cider

from cromic_ds.batch import BatchSplit
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.data.collate import blank_batch, collate, with_comments
from cromic_ds.data.dataset import UnreadableRecord
from cromic_ds.data.tokenizer import decode_text
from cromic_ds.errors import UserError
from cromic_ds.inference.decoding import generate_texts
from cromic_ds.inference.settings import DecodingSettings
from cromic_ds.metrics.segment import segment
from cromic_ds.ranks.launcher import Ranks
from cromic_ds.run_folder import RunFolder
from cromic_ds.training.learner import Learner
from cromic_ds.training.self_critical import SelfCritical, SelfCriticalSettings, against_the_others, closed

TOKENIZER = world_tokenizer()


class PlainEngine:
    """What self-critical training needs of an `Engine`, and a step of Adam."""

    def __init__(self, model, lr: float = 1e-3):
        self.model, self.device = model, torch.device("cpu")
        self.optimizer = torch.optim.Adam(model.parameters(), lr)

    @contextlib.contextmanager
    def full_weights(self):
        self.model.eval()
        with torch.no_grad():
            yield self.model

    def step(self, batch, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        (self.model.train()(batch) / batch.n_targets).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def make_learner(model=None, ranks: Ranks | None = None, seed: int = 7, micro_batches: int = 2) -> Learner:
    """A learner whose steps have so many micro-batches of four pictures."""
    ranks = ranks or Ranks()
    return Learner(
        engine=PlainEngine(model or make_model(TOKENIZER)),
        ema=None,
        state=TrainState(),
        split=BatchSplit(4 * micro_batches, 4, ranks.world_size),
        ranks=ranks,
        seed=seed,
        epoch_size=4,
    )


@pytest.fixture
def objective(tmp_path) -> Callable[..., SelfCritical]:
    """objective(dataset, setting=value, …): self-critical training in the run folder `tmp_path`."""

    def make(dataset: Pictures | None = None, **settings) -> SelfCritical:
        given = SelfCriticalSettings(**settings)
        return SelfCritical(given, TASK, RunFolder(tmp_path), dataset or Pictures(), TOKENIZER)

    return make


def sequences(batch) -> list[list[int]]:
    """The comments of a batch without their padding."""
    length = batch.comment_ids.shape[1] - 1
    n_targets = torch.bincount(batch.rows // length, minlength=len(batch.comment_ids)).tolist()
    return [row[: n + 1] for row, n in zip(batch.comment_ids.tolist(), n_targets)]


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "scst.samples is 0: give at least 1"),
        ({"samples": 1, "baseline": "mean"}, "scst.samples is 1: .* at least 2 with baseline mean"),
        ({"temperature": 0.0, "samples": 2, "baseline": "mean"}, "temperature must be above 0"),
        ({"temperature": 0.7}, "scst.temperature is 0.7: with the greedy baseline it must be 1; use baseline mean"),
        ({"max_new_tokens": 0}, "max_new_tokens at least 1"),
        ({"df_images": 1}, "scst.df_images is 1: give at least 2 images, or null for all"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(UserError, match=message):
        SelfCriticalSettings(**settings).check()


# ---- batches of given comments


def test_a_batch_with_other_comments_is_the_one_that_collation_makes():
    loaded = examples(TOKENIZER)
    batch = collate(loaded, special=special(TOKENIZER), image_size=96)
    comments = [list(reversed(example.comments))[:2] for example in loaded]
    for example, chosen in zip(loaded, comments):
        example.comments = chosen
    expected = collate(loaded, special=special(TOKENIZER), image_size=96)
    given = with_comments(batch, comments, np.arange(8.0), TOKENIZER.pad_token_id)
    for name in ("comment_ids", "owner", "rows", "post_rows", "images", "post_ids", "weights"):
        assert torch.equal(getattr(given, name), getattr(expected, name)), name
    assert (given.tokens_per_post, given.n_targets) == (expected.tokens_per_post, expected.n_targets)
    assert given.comment_weights.tolist() == list(range(8))
    assert given.images.data_ptr() == batch.images.data_ptr()


def test_a_blank_batch_with_comments_has_no_targets():
    given = with_comments(blank_batch(special(TOKENIZER), 96), [[np.array([2, 7, 8])]], np.ones(1), 0)
    assert (given.n_targets, given.weights.tolist(), given.rows.tolist()) == (0, [0.0], [0, 1])


# ---- sampling


def test_sequences_end_with_their_sep_or_where_they_were_cut():
    generated = torch.tensor([[2, 9, 3, 0, 0], [2, 9, 8, 7, 6], [2, 3, 0, 0, 0], [2, 9, 8, 7, 3]])
    assert [row.tolist() for row in closed(generated, end=3)] == [[2, 9, 3], [2, 9, 8, 7, 6], [2, 3], [2, 9, 8, 7, 3]]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_models_distribution(objective, temperature):
    n, model = 4000, make_model(TOKENIZER)
    (batch, _) = micro_batches(TOKENIZER)
    scst = objective(samples=n, baseline="mean", temperature=temperature, max_new_tokens=1)
    with torch.no_grad():
        memory = model.encode(batch.post_ids, None, batch.images)
        begin = torch.full((4, 1), TOKENIZER.cls_token_id)
        logits = model(decoder_input_ids=begin, encoder_outputs=memory).logits[:, 0]
        captions, greedy = scst.caption(model, batch, seed=1)
    assert greedy is None
    expected = (logits / temperature).softmax(-1).numpy()  # tokens that are no text included
    for image, samples in zip(expected, captions):
        drawn = np.bincount([int(ids[1]) for ids in samples], minlength=len(TOKENIZER)) / n
        assert np.abs(drawn - image).max() < 4.5 * np.sqrt(0.25 / n)
        assert np.abs(drawn - image).sum() < 0.1


def test_greedy_captions_are_those_of_an_evaluation(objective):
    (batch, _) = micro_batches(TOKENIZER)
    with make_learner().engine.full_weights() as model:
        _, greedy = objective().caption(model, batch, seed=1)
        texts = generate_texts(model, TOKENIZER, batch.post_ids, batch.images, DecodingSettings(1, max_new_tokens=12))
    assert [[decode_text(TOKENIZER, ids)] for ids in greedy] == texts


def test_what_is_sampled_follows_from_weights_seed_step_and_global_micro_batch(objective):
    def sampled(step: int = 3, seed: int = 7, ranks: Ranks | None = None) -> list[list[list[int]]]:
        learner = make_learner(ranks=ranks, seed=seed)
        learner.state.step = step
        mine = micro_batches(TOKENIZER)[learner.ranks.rank :: learner.ranks.world_size]
        batches, _ = objective(samples=2)(learner, mine)
        return [sequences(batch) for batch in batches]

    first = sampled()
    torch.manual_seed(99)
    assert sampled() == first  # a new objective, as after a resume
    assert first[0] != first[1]
    assert first[0] not in (sampled(step=4)[0], sampled(seed=8)[0])
    assert [sampled(ranks=Ranks(rank, 2))[0] for rank in range(2)] == first


# ---- rewards and advantages


def test_against_the_others():
    rewards = np.array([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]])
    assert against_the_others(rewards).tolist() == [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]]


def official_cider(predictions: list[str]) -> np.ndarray:
    """pycocoevalcap's CIDEr of one prediction for each picture; its frequencies are those of all pictures' captions."""
    references = {i: [segment(text, "char") for text in captions] for i, captions in enumerate(CAPTIONS)}
    return Cider().compute_score(references, {i: [segment(text, "char")] for i, text in enumerate(predictions)})[1]


def trained(steps: int = 60):
    """A model after the likelihood stage, as it were: its greedy captions are good, its samples mixed."""
    model = make_model(TOKENIZER)
    engine = PlainEngine(model)
    (batch, _) = micro_batches(TOKENIZER)
    for _ in range(steps):
        engine.step(batch, 1e-3)
    return model


@pytest.fixture(scope="module")
def likelihood_stage():
    return trained().state_dict()


@pytest.fixture
def model(likelihood_stage):
    model = make_model(TOKENIZER)
    model.load_state_dict(likelihood_stage)
    return model


def texts_of(captions: list[list[int]]) -> list[str]:
    """Texts to score: nothing for a caption with a token that is no text."""
    no_text = set(TOKENIZER.all_special_ids) - {TOKENIZER.sep_token_id}
    return ["" if no_text & set(ids[1:]) else decode_text(TOKENIZER, ids) for ids in captions]


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
def test_advantages_are_differences_of_the_official_scores(objective, model, baseline):
    learner = make_learner(model, micro_batches=1)
    (batch, _) = micro_batches(TOKENIZER)
    (given,), values = objective(samples=3, baseline=baseline)(learner, [batch])
    texts = texts_of(sequences(given))
    rewards = np.stack([official_cider(texts[k::3]) for k in range(3)], axis=1)  # (pictures, samples)
    with learner.engine.full_weights():
        settings = DecodingSettings(1, max_new_tokens=12)
        greedy = generate_texts(model, TOKENIZER, batch.post_ids, batch.images, settings)
    base = official_cider([text for (text,) in greedy])
    if baseline == "greedy":
        expected = rewards - base[:, None]
        assert values["reward_greedy"] == pytest.approx(base.mean())
    else:
        expected = np.stack([rewards[:, k] - np.delete(rewards, k, 1).mean(1) for k in range(3)], axis=1)
        assert "reward_greedy" not in values
    np.testing.assert_allclose(given.comment_weights.numpy(), expected.ravel(), atol=1e-6)
    assert values["reward"] == pytest.approx(rewards.mean())
    assert values["positive_advantages"] == pytest.approx((expected > 1e-9).mean())
    assert np.ptp(expected) > 1
    assert given.owner.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert given.n_targets == sum(len(ids) - 1 for ids in sequences(given)) == len(given.rows)


def test_a_caption_with_a_token_that_is_no_text_scores_nothing(objective):
    scst = objective(baseline="mean", samples=3)
    scst(make_learner(), micro_batches(TOKENIZER))  # counts the document frequencies
    (batch, _) = micro_batches(TOKENIZER)
    right = examples(TOKENIZER)[0].comments[0]
    ids = [right, np.insert(right, 3, TOKENIZER.unk_token_id), right[:-1]]
    given, sums = scst.reward(batch, [ids] * 4, None, scst.cider)
    advantages = given.comment_weights[:3].tolist()
    assert advantages[0] == advantages[2] > 0  # the closing [SEP] is not text
    assert advantages[1] == pytest.approx(-2 * advantages[0])
    assert sums[0] > 0


def test_images_without_references_and_blank_ones_count_nowhere(objective):
    class Gaps(Pictures):
        def texts(self, index):
            if index == 3:
                raise UnreadableRecord("3", "checksum")
            return super().texts(index)

    learner, dataset = make_learner(), Gaps([CAPTIONS[0], [" "], CAPTIONS[2], CAPTIONS[3]])
    batches, values = objective(dataset, samples=2)(learner, micro_batches(TOKENIZER, blank=True))
    assert [batch.weights.tolist() for batch in batches] == [[1, 0, 1, 0], [0]]
    assert not batches[0].comment_weights[[2, 3, 6, 7]].any()
    assert batches[0].n_targets == sum(len(ids) - 1 for ids in np.array(sequences(batches[0]), object)[[0, 1, 4, 5]])
    assert batches[1].n_targets == 0
    assert values["reward"] == pytest.approx(rewards_of(batches[0], [0, 1, 4, 5]).mean())
    loss = learner.engine.model.train()(batches[1])
    loss.backward()  # computable, and worth nothing
    assert loss.item() == 0


def rewards_of(batch, rows: list[int]) -> np.ndarray:
    """Official scores with the frequencies of pictures 0 and 2, of the samples in `rows`."""
    captions, scores = sequences(batch), []
    for row in rows:
        picture = row // 2
        references = {i: [segment(text, "char") for text in CAPTIONS[i]] for i in (0, 2)}
        mine = {i: [segment(texts_of([captions[row]])[0], "char") if i == picture else ""] for i in (0, 2)}
        scores.append(Cider().compute_score(references, mine)[1][[0, 2].index(picture)])
    return np.array(scores)


# ---- the gradient


def test_the_gradient_is_the_policy_gradient(objective, model):
    """Σ -advantage · log p(sample) over sampled tokens, token by token through the decoder, one caption at a time."""
    learner = make_learner(model, micro_batches=1)
    (batch, _) = micro_batches(TOKENIZER)
    (given,), _ = objective(samples=2, max_new_tokens=6)(learner, [batch])  # six: some captions are cut, without [SEP]
    ends = [ids[-1] == TOKENIZER.sep_token_id for ids in sequences(given)]
    assert any(ends)
    assert not all(ends)

    model.train()
    (model(given) / given.n_targets).backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total, tokens = 0.0, 0
    for row, (ids, advantage) in enumerate(zip(sequences(given), given.comment_weights.tolist())):
        memory = model.encode(None, None, batch.images[row // 2][None])
        logits = model(decoder_input_ids=torch.tensor([ids[:-1]]), encoder_outputs=memory).logits[0]
        chosen = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        total = total - advantage * chosen.sum()
        tokens += len(ids) - 1
    (total / tokens).backward()
    assert tokens == given.n_targets
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradient[name], p.grad, rtol=1e-3, atol=2e-6, msg=name)
    assert max(g.abs().max() for g in gradient.values()) > 1e-2


@pytest.mark.parametrize("baseline", ["greedy", pytest.param("mean", marks=pytest.mark.long)])
def test_training_raises_the_expected_reward(objective, model, baseline):
    """From 2.4 to 3.4 (greedy) or 3.8 (mean). Sampling without tokens that are no text takes `greedy` down to 0.8."""
    learner = make_learner(model, micro_batches=1)
    (batch, _) = micro_batches(TOKENIZER)
    measure, scst = objective(samples=300), objective(samples=40, baseline=baseline)
    before = measure(learner, [batch])[1]
    for _ in range(100):
        (given,), _ = scst(learner, [batch])
        learner.engine.step(given, 3e-4)
        learner.state.step += 1
    after = measure(learner, [batch])[1]
    assert after["reward"] > before["reward"] + 0.5
    assert before["reward"] < before["reward_greedy"]  # what there was to gain


# ---- document frequencies


def test_document_frequencies_are_counted_once_a_run(objective, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cromic_ds")
    path, batches = RunFolder(tmp_path).document_frequencies, micro_batches(TOKENIZER)
    learner, dataset = make_learner(), Pictures()
    scst = objective(dataset)
    scst(learner, batches)
    assert dataset.read == 4 + 8  # for the frequencies, and for two micro-batches' rewards
    assert "counting the n-grams in the references of 4 training images" in caplog.text
    assert "document frequencies: 4 images with references" in caplog.text
    scst(learner, batches)
    assert dataset.read == 4 + 8 + 8
    after_resume = Pictures()
    objective(after_resume)(learner, batches)
    assert after_resume.read == 8
    # With other settings, and where the file cannot be read, they are counted again.
    objective(after_resume, df_images=2)(learner, batches)
    assert after_resume.read == 8 + 2 + 8
    path.write_bytes(b"PK no archive")
    objective(after_resume, df_images=2)(learner, batches)
    assert after_resume.read == 8 + 2 + 8 + 2 + 8
    assert "cannot be read" in caplog.text
    assert list(tmp_path.iterdir()) == [path]


def test_a_limit_takes_images_from_everywhere(objective):
    dataset = Pictures([[f"词{i} 共"] for i in range(100)])
    seen = []
    dataset.texts = lambda index: seen.append(index) or Pictures.texts(dataset, index)
    objective(dataset, df_images=5)(make_learner(micro_batches=1), micro_batches(TOKENIZER)[:1])
    assert seen[:5] == [0, 20, 40, 60, 80]


def test_a_split_without_references_is_an_error(objective, tmp_path):
    with pytest.raises(UserError, match="needs references, and 1 of 3 images in split 'train' have any"):
        objective(Pictures([["红"], [], []]))(make_learner(), micro_batches(TOKENIZER))
    assert not list(tmp_path.iterdir())


# ---- under DeepSpeed


@pytest.mark.long
def test_two_ranks_under_zero_3_take_the_steps_of_one(tmp_path):
    answers = []
    for name, ranks, stage in (("one", 1, 0), ("two", 2, 3)):
        (tmp_path / name).mkdir()
        script = HELPERS / "scst_worker.py"
        job = Job(tmp_path / name, [str(stage), str(tmp_path / name)], ranks, script=str(script))
        assert job.wait() == [0] * ranks, job.output()
        answers.append(json.loads(job.logs[0].read_text().splitlines()[-1]))
    one, two = answers
    for a, b in zip(one["steps"], two["steps"]):
        assert b == pytest.approx(a, rel=1e-4)
        assert a["grad_norm"] > 0
    assert two["norm"] == pytest.approx(one["norm"], rel=1e-6)
    assert len(set(two["hooks"])) == 1  # gathering the weights each step leaves nothing behind
    assert RunFolder(tmp_path / "two").document_frequencies.exists()
