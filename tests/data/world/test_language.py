import numpy as np

from cromic_ds.data.tokenizer import encode, train_tokenizer
from cromic_ds.data.world.language import COMMENTS, DESCRIBING, comments, post, vocabulary_texts
from cromic_ds.data.world.scenes import N_SCENES, VALUES, questions, scene


def written(n):
    """(question, post, comments) for questions of many scenes."""
    for i in range(n):
        rng = np.random.default_rng(i)
        asked = questions(scene(i * 7919 % N_SCENES))
        question = asked[rng.integers(len(asked))][0]
        yield question, post(question, rng), comments(question, rng)


def test_comments_state_the_answer_and_no_other_value_of_its_attribute():
    for question, _, replies in written(2000):
        others = [value for value in VALUES[question.asked] if value != question.answer]
        assert 3 <= len(replies) <= 6 and len(set(replies)) == len(replies)
        for reply in replies:
            assert question.answer in reply
            assert not any(other in reply for other in others)
            assert len(reply) <= 10


def test_every_phrasing_is_unambiguous():
    """With the answer left out, no phrasing and no name contains a value of the asked attribute."""
    for attribute, phrasings in COMMENTS.items():
        for phrasing in (*phrasings, *DESCRIBING):
            for own in (q.thing for q, _ in questions(scene(0))):
                words = {"place": own.place, "colour": own.colour, "shape": own.shape, attribute: ""}
                text = phrasing.format(a="", x="", **words)
                assert not any(value in text for value in VALUES[attribute])


def test_posts_name_the_thing_and_do_not_tell_the_answer():
    posts = set()
    for question, text, _ in written(2000):
        assert question.name in text
        assert not any(value in text for value in VALUES[question.asked])
        assert 4 <= len(text) <= 16
        assert "#" not in text
        posts.add(text)
    assert len(posts) > 200  # varied


def test_the_vocabulary_covers_everything():
    tokenizer = train_tokenizer(vocabulary_texts(), 512)
    assert 120 <= len(tokenizer) <= 250
    texts = [text for _, first, replies in written(500) for text in (first, *replies)]
    unknown = tokenizer.unk_token_id
    for text, ids in zip(texts, encode(tokenizer, texts, 40)):
        assert unknown not in ids
        assert len(ids) == len(text) + 2  # a token a character
    assert unknown not in encode(tokenizer, ["Hello world 2026, 你好吗？"], 40)[0][1:8]
