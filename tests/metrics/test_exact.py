import pytest

from cromic_ds.metrics.exact import exact_match


@pytest.mark.parametrize(
    ("prediction", "reference", "hit"),
    [
        ("红色。", "红色", True),
        (" 是 的 ！", "是的", True),
        ("ＮＢＡ球员", "nba 球员", True),
        ("１０个", "10个", True),
        ("红", "红色", False),
        ("3.5", "35", True),  # signs are removed, the decimal point too
        ("？", "！", False),  # nothing is left to compare
        ("", "", False),
    ],
)
def test_exact_match(prediction, reference, hit):
    assert exact_match(prediction, [reference]) is hit


def test_any_reference_will_do():
    assert exact_match("蓝色", ["红色", "蓝色。"])
    assert not exact_match("蓝色", [])
