import json

from cromic_ds.tracking.samples import SamplesFolder
from cromic_ds.tracking.tracker import SampleRow

ROWS = [
    SampleRow("a1", "我家的*猫*", ["真好看", "什么猫"], ["好\n看", "猫"], b"JPEG", {"answer": "红色", "kind": "what"}),
    SampleRow("x/../y", "", ["圆"], [""], b"OTHER"),
    SampleRow("no picture", "字", [], ["<b>"], None),
]


def test_jsonl_markdown_and_pictures(tmp_path):
    SamplesFolder(tmp_path).samples(100, ROWS)
    folder = tmp_path / "samples"
    records = [json.loads(line) for line in (folder / "step-00000100.jsonl").read_text().splitlines()]
    assert records[0] == {
        "id": "a1",
        "post": "我家的*猫*",
        "references": ["真好看", "什么猫"],
        "generated": ["好\n看", "猫"],
        "extras": {"answer": "红色", "kind": "what"},
        "image": "images/a1.jpg",
    }
    assert [r["id"] for r in records] == ["a1", "x/../y", "no picture"]
    assert (folder / records[0]["image"]).read_bytes() == b"JPEG"
    assert (folder / records[1]["image"]).read_bytes() == b"OTHER"
    assert (folder / records[1]["image"]).parent == folder / "images"
    assert records[2]["image"] is None

    markdown = (folder / "step-00000100.md").read_text()
    assert markdown.startswith(
        "# Samples after step 100\n\n## a1\n\n![a1](images/a1.jpg)\n\n"
        "- post: 我家的\\*猫\\*\n- generated: 好 看\n- generated: 猫\n"
        "- reference: 真好看\n- reference: 什么猫\n- answer: 红色\n"
    )
    assert "- generated: \\<b\\>" in markdown


def test_pictures_are_written_once_and_a_repeated_step_replaces_its_files(tmp_path):
    folder = SamplesFolder(tmp_path)
    folder.samples(1, ROWS)
    picture = tmp_path / "samples" / "images" / "a1.jpg"
    written = picture.stat().st_mtime_ns
    folder.samples(1, ROWS[:1])
    folder.samples(2, ROWS[:1])
    assert picture.stat().st_mtime_ns == written
    assert len((tmp_path / "samples" / "step-00000001.jsonl").read_text().splitlines()) == 1
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "images",
        *("step-00000001.jsonl", "step-00000001.md", "step-00000002.jsonl", "step-00000002.md"),
    ]


def test_ids_that_clean_to_the_same_name_keep_their_own_pictures(tmp_path):
    rows = [SampleRow(i, "", [], [], i.encode()) for i in ("a b", "a.b", "a_b")]
    SamplesFolder(tmp_path).samples(1, rows)
    records = map(json.loads, (tmp_path / "samples" / "step-00000001.jsonl").read_text().splitlines())
    assert [(tmp_path / "samples" / r["image"]).read_text() for r in records] == ["a b", "a.b", "a_b"]
