import json

from cromic_ds.world.json_list import JsonLists


def test_the_same_bytes_as_json_dump(tmp_path):
    items = [{"a": "红", "b": [1, 2]}, "x", 3]
    with JsonLists(tmp_path / "list.json") as file:
        for item in items:
            file.add(item)
    assert (tmp_path / "list.json").read_text() == json.dumps(items)
    with JsonLists(tmp_path / "lists.json", '{"one": ', ', "n": 1}', ascii=False) as file:
        file.add(items[0])
        file.next_list(', "two": ')
        file.add(items[1])
        file.add(items[0])
        file.next_list(', "none": ')
    whole = {"one": items[:1], "two": [items[1], items[0]], "none": [], "n": 1}
    assert (tmp_path / "lists.json").read_text(encoding="utf-8") == json.dumps(whole, ensure_ascii=False)
