"""Settings that cannot work are rejected; texts come in the order of the posts, without special tokens."""

from __future__ import annotations

import pytest
import torch

from cromic_ds.data.tokenizer import decode_text, encode
from cromic_ds.errors import UserError
from cromic_ds.inference.decoding import decoding_for, generate_texts, generation_config
from cromic_ds.inference.settings import DecodingSettings, GenerateSettings
from cromic_ds.tasks import TASKS

POSTS = ["左边的图形是什么颜色？", "猜猜看", "圆形"]


@pytest.fixture
def inputs(tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, right-padded, and random pictures of three posts."""
    posts = [torch.from_numpy(ids).long() for ids in encode(tokenizer, POSTS, 40)]
    padded = torch.nn.utils.rnn.pad_sequence(posts, batch_first=True, padding_value=tokenizer.pad_token_id)
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return padded, images


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beams": 0}, "beams, num and max_new_tokens must be at least 1"),
        ({"num": 0}, "beams, num and max_new_tokens must be at least 1"),
        ({"max_new_tokens": 0}, "beams, num and max_new_tokens must be at least 1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\]"),
        ({"top_k": 0}, "top_k is 0: give at least 1, or null for no limit"),
        ({"no_repeat_ngram_size": 0}, "no_repeat_ngram_size is 0: give at least 1, or null"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"beams": 2, "num": 3}, "3 texts from 2 beams: use at least 3 beams, or sample"),
        ({"beams": 1, "num": 2}, "2 texts from 1 beams"),
    ],
)
def test_settings_that_cannot_work(wrong, message):
    with pytest.raises(UserError, match=message):
        DecodingSettings(**wrong).check()


@pytest.mark.parametrize(
    "right", [{}, {"beams": 1}, {"beams": 3, "num": 3}, {"beams": 1, "num": 4, "top_p": 0.9}, {"num": 9, "top_k": 5}]
)
def test_settings_that_work(right):
    DecodingSettings(**right).check()


def test_the_longest_text_is_the_tasks_unless_it_is_set():
    assert decoding_for(TASKS["muge"], DecodingSettings(beams=2)) == DecodingSettings(beams=2, max_new_tokens=72)
    assert decoding_for(TASKS["muge"], DecodingSettings(max_new_tokens=9)).max_new_tokens == 9
    assert decoding_for(TASKS["comments"], GenerateSettings(top_k=3)) == DecodingSettings(top_k=3, max_new_tokens=25)


def test_what_samples():
    assert not DecodingSettings().samples
    assert all(DecodingSettings(**s).samples for s in ({"top_k": 1}, {"top_p": 0.9}, {"temperature": 0.5}))


def test_the_form_of_transformers(tokenizer):
    beam = generation_config(DecodingSettings(beams=4, num=2, length_penalty=0.8, no_repeat_ngram_size=3), tokenizer)
    assert (beam.num_beams, beam.num_return_sequences, beam.length_penalty, beam.do_sample) == (4, 2, 0.8, False)
    assert (beam.no_repeat_ngram_size, beam.max_new_tokens) == (3, 25)
    assert (beam.eos_token_id, beam.decoder_start_token_id) == (tokenizer.sep_token_id, tokenizer.cls_token_id)
    sampled = generation_config(DecodingSettings(beams=4, top_p=0.9, top_k=7, temperature=0.5), tokenizer)
    assert (sampled.do_sample, sampled.top_p, sampled.top_k, sampled.temperature) == (True, 0.9, 7, 0.5)
    assert sampled.num_beams in (None, 1)
    assert generation_config(DecodingSettings(top_p=0.9), tokenizer).top_k == 0  # no limit; None would be 50
    assert set(beam.suppress_tokens) == set(tokenizer.all_special_ids) - {tokenizer.sep_token_id}


@pytest.mark.parametrize(
    "settings",
    [
        DecodingSettings(beams=1, max_new_tokens=8),
        DecodingSettings(beams=3, num=1, max_new_tokens=8),
        DecodingSettings(beams=4, num=3, max_new_tokens=8),
        DecodingSettings(num=3, top_p=0.95, temperature=3.0, max_new_tokens=8),
        DecodingSettings(num=2, top_k=50, max_new_tokens=8),
    ],
    ids=["greedy", "beam", "three of four beams", "top_p", "top_k"],
)
def test_texts_of_each_post(smallest, tokenizer, inputs, settings):
    model = smallest()
    torch.manual_seed(0)
    texts = generate_texts(model, tokenizer, *inputs, settings)
    assert [len(of_post) for of_post in texts] == [settings.num] * 3
    torch.manual_seed(0)
    post_ids, images = inputs
    config = generation_config(settings, tokenizer)
    sequences = model.generate(input_ids=post_ids, pixel_values=images, generation_config=config)
    flat = [text for of_post in texts for text in of_post]
    assert flat == [decode_text(tokenizer, ids) for ids in sequences.tolist()]
    if settings.beams > 1 and not settings.samples:
        assert all(len(set(of_post)) == settings.num for of_post in texts)


@pytest.mark.parametrize("how", [{"beams": 1}, {"beams": 3}, {"top_p": 0.99, "temperature": 2.0}])
def test_tokens_that_are_no_text_are_never_generated(smallest, tokenizer, inputs, how):
    model = smallest()
    never = [i for i in tokenizer.all_special_ids if i != tokenizer.sep_token_id]
    with torch.no_grad():
        model.generator.bias[never] = 50.0  # what the model likes best by far
    post_ids, images = inputs
    settings = DecodingSettings(**how, max_new_tokens=6)
    config = generation_config(settings, tokenizer)
    sequences = model.generate(input_ids=post_ids, pixel_values=images, generation_config=config)
    for sequence in sequences[:, 1:].tolist():
        end = sequence.index(tokenizer.sep_token_id) if tokenizer.sep_token_id in sequence else len(sequence)
        assert not set(sequence[:end]) & set(never)


def test_no_ngram_twice(smallest, tokenizer, inputs):
    model = smallest()
    circle = tokenizer.convert_tokens_to_ids("圆")
    with torch.no_grad():
        model.generator.bias[circle] = 50.0
    post_ids, images = inputs
    repeated = generate_texts(model, tokenizer, post_ids, images, DecodingSettings(beams=1, max_new_tokens=6))
    assert repeated[0] == ["圆圆圆圆圆圆"]
    once = DecodingSettings(beams=1, max_new_tokens=6, no_repeat_ngram_size=2)
    assert all("圆圆圆" not in text for [text] in generate_texts(model, tokenizer, post_ids, images, once))


def test_a_posts_texts_do_not_depend_on_its_neighbors(smallest, tokenizer, inputs):
    model, settings = smallest(), DecodingSettings(beams=3, num=2, max_new_tokens=8)
    post_ids, images = inputs
    together = generate_texts(model, tokenizer, post_ids, images, settings)
    alone = [generate_texts(model, tokenizer, post_ids[[i]], images[[i]], settings)[0] for i in range(3)]
    assert together == alone
