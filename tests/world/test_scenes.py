from collections import Counter

import pytest

from cromic_ds.world.scenes import (
    ATTRIBUTE_VALUES,
    COLOR_WORDS,
    N_SCENES,
    OFFICIAL_SCENES,
    POST_SCENES,
    QUESTION_KINDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    nth_scene,
    numbered_scene,
    official_scene,
    scene_from_json,
    scene_questions,
    scene_to_json,
)


def test_the_three_things_differ_in_everything():
    for i in range(0, N_SCENES, 997):
        things = numbered_scene(i)
        assert [thing.place for thing in things] == ["左边", "中间", "右边"]
        for attribute in ("color", "shape", "size"):
            assert len({getattr(thing, attribute) for thing in things}) == 3


def test_all_scenes_differ():
    assert N_SCENES == (8 * 7 * 6) * (4 * 3 * 2) * 6
    some = [*range(5000), *range(0, N_SCENES, 37)]
    assert len({numbered_scene(i) for i in some}) == len(set(some))


def test_worlds_have_no_scene_twice_and_differ():
    first, second = ([nth_scene(i, seed) for i in range(5000)] for seed in (0, 1))
    assert len(set(first)) == len(set(second)) == 5000
    assert len(set(first) & set(second)) < 650  # 517 expected
    counts = Counter(thing.color for things in first for thing in things)
    assert min(counts[c] for c in COLOR_WORDS) > 1700 and max(counts.values()) < 2050  # 1875 expected


def test_posts_and_official_files_of_a_world_share_no_scene():
    assert POST_SCENES + OFFICIAL_SCENES == N_SCENES
    assert official_scene(0, 5) == nth_scene(N_SCENES - 1, 5)
    assert official_scene(OFFICIAL_SCENES - 1, 5) == nth_scene(POST_SCENES, 5)  # the last one meets no post
    some = {official_scene(i, 5) for i in range(OFFICIAL_SCENES - 2000, OFFICIAL_SCENES)}
    assert len(some) == 2000
    assert not some & {nth_scene(i, 5) for i in range(POST_SCENES - 2000, POST_SCENES)}


def test_no_value_is_part_of_another():
    values = [value for group in ATTRIBUTE_VALUES.values() for value in group]
    assert len(set(values)) == len(COLOR_WORDS) + len(SHAPE_WORDS) + 3 + len(SIZE_WORDS)
    assert [(a, b) for a in values for b in values if a != b and a in b] == []


def test_questions_of_a_scene():
    things = numbered_scene(12_345)
    asked = scene_questions(things)
    assert len(asked) == 18
    assert sum(p for _, p in asked) == pytest.approx(1)
    for kind, types in QUESTION_KINDS.items():
        assert sum(p for q, p in asked if q.kind == kind) == pytest.approx(0.5)
        for asked_about, named_by in types:
            share = sum(p for q, p in asked if (q.asked, q.named_by) == (asked_about, named_by))
            assert share == pytest.approx(0.5 / len(types))
    for question, _ in asked:
        [thing] = [thing for thing in things if getattr(thing, question.named_by) == question.name]
        assert getattr(thing, question.asked) == question.answer
        assert question.asked != question.named_by
        assert ("place" in (question.asked, question.named_by)) == (question.kind == "where")


def test_scenes_survive_json():
    assert scene_from_json(scene_to_json(numbered_scene(99))) == numbered_scene(99)
    assert scene_to_json(numbered_scene(0))[0] == {"place": "左边", "color": "红色", "shape": "圆形", "size": "最大"}
