"""What a finished run shows, from its files alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cromic_ds.training.summary import print_summary


@pytest.fixture
def shown(tmp_path: Path):
    """shown(): what `print_summary` prints of the run in tmp_path, by default without line breaks inside cells."""

    def show(width: int = 200) -> str:
        console = Console(file=io.StringIO(), width=width)
        print_summary(tmp_path, console)
        return console.file.getvalue()

    return show


def write_lines(path: Path, *records: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def sample(post: str, generated: list[str], references: list[str]) -> dict:
    return {"id": "a", "post": post, "generated": generated, "references": references, "extras": {}, "image": None}


def test_the_newest_samples_scores_and_places(tmp_path, shown):
    older, newer = sample("旧的", ["旧"], ["旧"]), sample("圆是什么颜色", ["红色的", "红"], list("一二三四"))
    write_lines(tmp_path / "samples" / "step-00000100.jsonl", older)
    write_lines(tmp_path / "samples" / "step-00000200.jsonl", newer)
    write_lines(
        tmp_path / "metrics.jsonl",
        {"step": 100, "kind": "eval", "posts": 10, "perplexity": 9.0},
        {"step": 200, "kind": "train", "loss": 1.0},
        {"step": 200, "kind": "eval", "posts": 10, "perplexity": 1.23456, "bleu_4": 0.5, "grounded": None},
    )
    (tmp_path / "export").mkdir()
    out = shown()
    assert "圆是什么颜色" in out
    assert "红色的" in out
    assert "一 / 二 / 三" in out
    assert "四" not in out  # three references are enough
    assert "旧" not in out
    assert "Scores" in out
    assert "1.2346" in out
    assert "0.5000" in out
    assert "9.0" not in out
    assert "grounded" not in out
    assert f"export       {tmp_path / 'export'}" in out
    assert f"numbers      {tmp_path / 'metrics.jsonl'}" in out
    assert "checkpoints  " not in out  # there are none
    assert f"cromic-ds generate {tmp_path / 'export'} --image PICTURE --post TEXT" in out


def test_brackets_in_a_post_are_text(tmp_path, shown):
    write_lines(tmp_path / "samples" / "step-00000001.jsonl", sample("好看[doge]", ["[/red]哈[bold]"], ["[x]"]))
    write_lines(tmp_path / "metrics.jsonl", {"step": 1, "kind": "train", "loss": 1.0})
    out = shown()
    assert "好看[doge]" in out
    assert "[/red]哈[bold]" in out
    assert "[x]" in out


def test_long_texts_are_wrapped_and_not_cut_off(tmp_path, shown):
    post = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    write_lines(tmp_path / "samples" / "step-00000001.jsonl", sample(post, [post], [post]))
    write_lines(tmp_path / "metrics.jsonl", {"step": 1, "kind": "train", "loss": 1.0})
    out = shown(width=80)
    assert all(out.count(character) == 3 for character in post)


def test_a_run_without_evaluation(tmp_path, shown):
    write_lines(tmp_path / "metrics.jsonl", {"step": 1, "kind": "train", "loss": 1.0})
    assert shown().split() == ["numbers", str(tmp_path / "metrics.jsonl")]
