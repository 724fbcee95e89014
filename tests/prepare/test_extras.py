import json

import pytest

from cromic_ds.errors import UserError
from cromic_ds.prepare.extras import ExtrasSource


def test_extras(tmp_path):
    file = tmp_path / "extras.jsonl"
    file.write_text(json.dumps({"id": "a", "answer": "红色"}, ensure_ascii=False) + "\n", encoding="utf-8")
    extras = ExtrasSource(file, tmp_path / "work")
    assert (extras.get("a"), extras.get("b")) == ({"answer": "红色"}, {})
    file.write_text('{"id": "a"}\n{"answer": 1}\n')
    with pytest.raises(UserError, match=r"extras\.jsonl:2"):
        ExtrasSource(file, tmp_path / "other")
