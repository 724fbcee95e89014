"""What is drawn for ViLT's pretraining losses: rates, whole words, determinism, independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cromic_ds.batch import Batch
from cromic_ds.data.collate import LoadedExample, SpecialTokens, collate
from cromic_ds.data.tokenizer import train_tokenizer
from cromic_ds.models.common.kernels import IGNORE
from cromic_ds.models.vilt.config import ViLTConfig
from cromic_ds.models.vilt.draws import generators, masked_words, swapped_images
from cromic_ds.models.vilt.model import ViLTModel

VOCABULARY, MASK = 1000, 103
CONTINUES = np.arange(VOCABULARY) >= 700  # three tenths of the tokens go on with a word
KNOWN = {"mask_id": MASK, "special_ids": (0, 101, 102), "continues": CONTINUES}


def posts(*numbers: int, tokens: int = 40) -> Batch:
    """Posts of these numbers in the data set; the text follows from the number."""

    def example(number: int) -> LoadedExample:
        text = np.random.default_rng(number).integers(200, VOCABULARY, tokens - 2)
        return LoadedExample(str(number), number, np.array([101, *text, 102]), [np.array([101, 5, 102])], None)

    return collate([example(n) for n in numbers], special=SpecialTokens(0, 101, 102), image_size=0)


def masked(batch: Batch, seed: int = 0, rate: float = 0.15) -> dict[str, torch.Tensor]:
    return masked_words(batch, generators(batch, seed), rate=rate, **KNOWN)


def test_rates():
    batch = posts(*range(1000))
    drawn = [masked(batch, seed) for seed in range(8)]
    new = torch.cat([d["masked_ids"].flatten()[d["masked_rows"]] for d in drawn])
    old = torch.cat([d["masked_targets"] for d in drawn])
    assert len(old) / (8 * 1000 * 38) == pytest.approx(0.15, abs=0.003)
    assert (new == MASK).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert (new == old).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert len(new[(new != MASK) & (new != old)].unique()) > 900  # the rest: any token


def test_whole_words_and_nothing_else():
    batch = posts(*range(50))
    drawn = masked(batch, rate=0.4)
    rows = drawn["masked_rows"]
    assert torch.equal(drawn["masked_targets"], batch.post_ids.flatten()[rows])
    chosen = torch.zeros_like(batch.post_ids).flatten()
    chosen[rows] = 1
    chosen = chosen.view_as(batch.post_ids)
    assert torch.equal(drawn["masked_ids"][chosen == 0], batch.post_ids[chosen == 0])
    assert not chosen[:, 0].any() and not chosen[:, -1].any()  # [CLS] and [SEP]
    inside = torch.from_numpy(CONTINUES)[batch.post_ids]
    inside[:, 1] = False  # what follows [CLS] begins a word
    first_of_text = torch.from_numpy(CONTINUES)[batch.post_ids[:, 1]]
    for post in torch.where(~first_of_text)[0].tolist():
        for place in torch.where(inside[post])[0].tolist():
            assert chosen[post, place] == chosen[post, place - 1]
    assert chosen[inside].float().mean().item() == pytest.approx(0.4, abs=0.06)


def test_a_post_is_masked_the_same_in_any_batch():
    whole = masked(posts(3, 4, 5), seed=7)
    alone = masked(posts(4), seed=7)
    mine = (whole["masked_rows"] >= 40) & (whole["masked_rows"] < 80)
    assert torch.equal(whole["masked_rows"][mine] - 40, alone["masked_rows"])
    assert torch.equal(whole["masked_ids"][1], alone["masked_ids"][0])
    assert not torch.equal(masked(posts(4), seed=8)["masked_rows"], alone["masked_rows"])
    assert all(torch.equal(a, b) for a, b in zip(alone.values(), masked(posts(4), seed=7).values()))


def test_nothing_to_mask_is_one_ignored_target():
    batch = posts(1, 2)
    batch.weights[:] = 0
    for nothing in (masked(batch), masked(posts(1, tokens=2)), masked(posts(1), rate=1e-9)):
        assert set(nothing) == {"masked_rows", "masked_targets"}
        assert nothing["masked_rows"].tolist() == [0]
        assert nothing["masked_targets"].tolist() == [IGNORE]


def test_half_of_the_posts_get_another_image():
    batch = posts(*range(1000))
    drawn = swapped_images(batch, generators(batch, 0), rate=0.5)
    swapped, partners, targets = drawn["swapped"], drawn["partners"], drawn["match_targets"]
    assert len(swapped) / 1000 == pytest.approx(0.5, abs=0.05)
    assert torch.equal(swapped // 2, partners // 2) and not (swapped == partners).any()
    assert torch.equal(torch.where(targets == 0)[0], swapped)
    assert torch.equal(drawn["match_rows"][swapped], 1000 + torch.arange(len(swapped)))
    assert torch.equal(drawn["match_rows"][targets == 1], torch.where(targets == 1)[0])
    again = swapped_images(batch, generators(batch, 0), rate=0.5)
    assert all(torch.equal(again[name], drawn[name]) for name in drawn)


def test_only_posts_with_text_and_weight_are_judged_and_only_real_images_lent():
    batch = posts(*range(200))
    batch.weights[:100] = 0
    batch.post_lengths[100:150] = 2
    drawn = swapped_images(batch, generators(batch, 0), rate=0.9)
    assert (drawn["match_targets"][:150] == IGNORE).all()
    assert (drawn["match_targets"][150:] != IGNORE).all()
    assert drawn["swapped"].min() >= 150 and drawn["partners"].min() >= 100
    alone = swapped_images(posts(1), generators(posts(1), 0), rate=0.9)
    assert alone["match_targets"].tolist() == [1] and not len(alone["swapped"])


def test_words_come_from_the_tokenizer():
    tokenizer = train_tokenizer(["苹果 apple apples apple", "apple 红色 reddish red"] * 20, 60)
    model = ViLTModel(ViLTConfig(**ViLTConfig.presets["tiny"], vocab_size=len(tokenizer)))
    assert not model.continues.any()
    model.use_tokenizer(tokenizer)
    ids = tokenizer("红色reddish", add_special_tokens=False)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert model.continues[ids].tolist() == [piece.startswith("##") for piece in pieces]
    assert model.continues[ids].tolist()[:3] == [False, False, False]  # each Chinese character is a word
    assert model.continues.sum() == sum(token.startswith("##") for token in tokenizer.get_vocab()) > 0
