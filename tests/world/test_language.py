import numpy as np

from cromic_ds.data.tokenizer import encode, train_tokenizer
from cromic_ds.world.language import (
    ANSWER_PHRASES,
    CAPTION_PHRASES,
    COMMENT_PHRASES,
    COMPOUNDS,
    DESCRIPTION_PHRASES,
    NAME_PHRASES,
    QUESTION_PHRASES,
    vocabulary_texts,
    without_spaces,
    write_answer,
    write_captions,
    write_comments,
    write_post,
    write_question,
)
from cromic_ds.world.scenes import ATTRIBUTE_VALUES, N_SCENES, numbered_scene, scene_questions


def written(n):
    """Yield (question, post, comments) for questions about many scenes."""
    for i in range(n):
        rng = np.random.default_rng(i)
        asked = scene_questions(numbered_scene(i * 7919 % N_SCENES))
        question = asked[rng.integers(len(asked))][0]
        yield question, write_post(question, rng), write_comments(question, rng)


def test_comments_state_the_answer_and_no_other_value_of_its_attribute():
    for question, _, replies in written(2000):
        others = [value for value in ATTRIBUTE_VALUES[question.asked] if value != question.answer]
        assert 3 <= len(replies) <= 6 and len(set(replies)) == len(replies)
        for reply in replies:
            assert question.answer in reply
            assert not any(other in reply for other in others)
            assert len(reply) <= 10


def test_every_phrasing_is_unambiguous():
    """Without the answer, no phrase and no name contains a value of the asked attribute."""
    for attribute, phrasings in COMMENT_PHRASES.items():
        for phrasing in (*phrasings, *DESCRIPTION_PHRASES):
            for own in (q.thing for q, _ in scene_questions(numbered_scene(0))):
                words = {"place": own.place, "color": own.color, "shape": own.shape, attribute: ""}
                text = phrasing.format(a="", x="", **words)
                assert not any(value in text for value in ATTRIBUTE_VALUES[attribute])


def test_posts_name_the_thing_and_do_not_tell_the_answer():
    posts = set()
    for question, text, _ in written(2000):
        assert question.name in text
        assert not any(value in text for value in ATTRIBUTE_VALUES[question.asked])
        assert 4 <= len(text) <= 16
        assert "#" not in text
        posts.add(text)
    assert len(posts) > 200  # varied


def test_questions_and_answers_of_the_downstream_tasks():
    asked, answered = set(), set()
    for i in range(500):
        rng = np.random.default_rng(i)
        for question, _ in scene_questions(numbered_scene(i * 7919 % N_SCENES)):
            text, reply = write_question(question, rng), write_answer(question, rng)
            values = ATTRIBUTE_VALUES[question.asked]
            assert question.name in text and not any(value in text for value in values)
            assert [value for value in values if value in reply] == [question.answer]
            assert len(text) <= 12 and len(reply) <= 10 and reply.endswith("。")
            name = NAME_PHRASES[question.named_by].format(name=question.name)
            asked.add((question.asked, text.replace(name, "{x}")))
            answered.add((question.asked, reply.replace(name, "{x}").replace(question.answer, "{a}")))
    for phrasings, written_ones in ((QUESTION_PHRASES, asked), (ANSWER_PHRASES, answered)):
        # all of them, and no others
        assert written_ones == {(attribute, phrasing) for attribute in phrasings for phrasing in phrasings[attribute]}


def test_captions_name_the_three_things_from_left_to_right_and_nothing_else():
    assert len(CAPTION_PHRASES) == len(set(CAPTION_PHRASES)) == 12
    for i in range(300):
        things = numbered_scene(i * 7919 % N_SCENES)
        written = write_captions(things, np.random.default_rng(i), 12)
        assert len(set(written)) == 12
        for words in written:
            text = without_spaces(words)
            assert " " not in text and len(text) <= 24
            assert sorted((c for c in COMPOUNDS if c in text), key=text.index) == [t.color + t.shape for t in things]


def test_no_compound_is_part_of_another():
    assert len(set(COMPOUNDS)) == 32
    assert [(a, b) for a in COMPOUNDS for b in COMPOUNDS if a != b and a in b] == []


def test_the_vocabulary_covers_everything():
    tokenizer = train_tokenizer(vocabulary_texts(), 512)
    assert 120 <= len(tokenizer) <= 250
    texts = [text for _, first, replies in written(500) for text in (first, *replies)]
    for i in range(100):
        things, rng = numbered_scene(i * 7919 % N_SCENES), np.random.default_rng(i)
        texts += [without_spaces(caption) for caption in write_captions(things, rng, len(CAPTION_PHRASES))]
        for question, _ in scene_questions(things):
            texts += [write_question(question, rng), write_answer(question, rng)]
    unknown = tokenizer.unk_token_id
    for text, ids in zip(texts, encode(tokenizer, texts, 40)):
        assert unknown not in ids
        assert len(ids) == len(text) + 2  # one token per character
    assert unknown not in encode(tokenizer, ["Hello world 2026, 你好吗？"], 40)[0][1:8]
