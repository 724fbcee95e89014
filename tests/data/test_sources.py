import base64
import json
import pickle

import lmdb
import pytest

from cromic_ds.data.images import BadImage
from cromic_ds.data.sources import ExtrasSource, FolderSource, LmdbSource, TsvSource, open_source
from cromic_ds.errors import UserError


def make_lmdb(folder, images: dict[str, bytes]) -> None:
    with lmdb.open(str(folder), lock=False) as env, env.begin(write=True) as txn:
        for key, value in images.items():
            txn.put(key.encode(), value)


def test_folder(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"A")
    (folder / "b.PNG").write_bytes(b"B")
    (folder / "sub" / "c.webp").write_bytes(b"C")
    (tmp_path / "secret.jpg").write_bytes(b"S")
    source = open_source(folder, tmp_path)
    assert isinstance(source, FolderSource)
    assert [source.get(id) for id in ("a", "b", "b ", "sub/c", "d", "x" * 400)] == [b"A", b"B", b"B", b"C", None, None]
    assert source.get("../secret") is None
    assert source.get(str(tmp_path / "secret")) is None


def test_lmdb_keys_with_and_without_a_trailing_space(tmp_path):
    make_lmdb(tmp_path / "env", {"a ": b"A", "b": b"B", "c": b"exact", "c ": b"with space"})
    source = open_source(tmp_path / "env", tmp_path)
    assert isinstance(source, LmdbSource)
    assert [source.get(id) for id in ("a", "a ", "b", "b ", "c", "c ", "d")] == [
        b"A",
        b"A",
        b"B",
        b"B",
        b"exact",
        b"with space",
        None,
    ]


def test_tsv(tmp_path):
    file = tmp_path / "images.tsv"
    jpeg = bytes(range(256))
    rows = {"a": base64.b64encode(jpeg), "b ": base64.urlsafe_b64encode(jpeg), "c": b"%%%", "a2": b""}
    file.write_bytes(b"".join(key.encode() + b"\t" + value + b"\n" for key, value in rows.items()))
    source = open_source(file, tmp_path / "work")
    assert isinstance(source, TsvSource)
    source = pickle.loads(pickle.dumps(source))
    assert [source.get(id) for id in ("a", "b", "b ", "d")] == [jpeg, jpeg, jpeg, None]
    with pytest.raises(BadImage, match="broken base64"):
        source.get("c")


def test_tsv_without_tab_names_the_line(tmp_path):
    file = tmp_path / "images.tsv"
    file.write_text("a\tAAAA\nb AAAA\n")
    with pytest.raises(UserError, match=r"images\.tsv:2: no TAB"):
        open_source(file, tmp_path / "work")


def test_missing_source(tmp_path):
    with pytest.raises(UserError, match="no such image folder"):
        open_source(tmp_path / "nothing", tmp_path)


def test_extras(tmp_path):
    file = tmp_path / "extras.jsonl"
    file.write_text(json.dumps({"id": "a", "answer": "红色"}, ensure_ascii=False) + "\n", encoding="utf-8")
    extras = ExtrasSource(file, tmp_path / "work")
    assert (extras.get("a"), extras.get("b")) == ({"answer": "红色"}, {})
    file.write_text('{"id": "a"}\n{"answer": 1}\n')
    with pytest.raises(UserError, match=r"extras\.jsonl:2"):
        ExtrasSource(file, tmp_path / "other")
