import pickle

import pytest

from cromic_ds.data.disk_table import DiskTable, disk_groups, new_table, scratch_table


def test_first_row_of_a_key_is_kept_and_later_ones_are_reported(tmp_path):
    with new_table(tmp_path / "table.db", "key BLOB PRIMARY KEY, value INTEGER") as table:
        new = [table.insert(f"id{n % 70_000}".encode(), n) for n in range(100_000)]
        assert not (tmp_path / "table.db").exists()
    assert new == [True] * 70_000 + [False] * 30_000
    table = pickle.loads(pickle.dumps(DiskTable(tmp_path / "table.db")))

    def find(key: bytes) -> tuple[int] | None:
        return table.execute("SELECT value FROM rows WHERE key = ?", key).fetchone()

    assert [find(f"id{n}".encode()) for n in (0, 29_999, 69_999, 70_000)] == [(0,), (29_999,), (69_999,), None]


def test_an_unfinished_or_temporary_table_leaves_nothing_behind(tmp_path):
    with pytest.raises(OSError, match="full"), new_table(tmp_path / "table.db", "key TEXT PRIMARY KEY") as table:
        table.insert("a")
        raise OSError("full")
    with scratch_table(tmp_path / "table.db", "key TEXT PRIMARY KEY") as table:
        table.insert("a")
    assert list(tmp_path.iterdir()) == []


def test_a_table_replaces_what_an_interrupted_process_has_left(tmp_path):
    (tmp_path / "table.db.tmp").write_bytes(b"unfinished")
    with new_table(tmp_path / "table.db", "key TEXT PRIMARY KEY") as table:
        table.insert("a")
    assert DiskTable(tmp_path / "table.db").execute("SELECT key FROM rows").fetchall() == [("a",)]


def test_groups_join_by_key(tmp_path):
    parts = [("b", 2, {"n": 2}), ("a", 0, ["x"]), ("b", 1, {"n": 1}), ("b", 2, "again"), ("c", 0, None)]
    with disk_groups(tmp_path / "groups.db") as groups:
        assert list(groups.fill(parts)) == [("b", "again")]
        assert (groups.get("b"), groups.get("a"), groups.get("d")) == ([{"n": 1}, {"n": 2}], [["x"]], [])
        assert list(groups.unused()) == [("c", None)]
    assert list(tmp_path.iterdir()) == []
