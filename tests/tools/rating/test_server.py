from __future__ import annotations

import io
import re
import socket

import pytest
from flask.testing import FlaskClient
from helpers.rating_server import SYSTEMS
from PIL import Image

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError
from cromic_ds.tools.rating.server import PAGE, address, is_loopback, listen, make_app

OWN = "http://localhost"  # what the test client calls the server


@pytest.fixture
def client(judgments, fmiqa) -> FlaskClient:
    return make_app(judgments, open_dataset(fmiqa, "val").image, "127.0.0.1").test_client()


@pytest.fixture
def valid(judgments) -> dict:
    return {"rater": "Anna", "sheet": judgments.sheet, "position": 0, "passed": True, "quality": 2}


def test_from_place_to_place(client, judgments, valid):
    place = client.get("/api/place?rater=Anna").json
    item = judgments.item(0)
    expected = {"rater": "Anna", "sheet": judgments.sheet, "position": 0, "of": 12}
    assert place == {**expected, "question": item.question, "answer": item.answer}
    for position in range(12):
        response = client.post("/api/judge", json={**valid, "position": position}, headers={"Origin": OWN})
        assert (response.status_code, response.json["position"]) == (201, position + 1)
    assert response.json == {**expected, "position": 12}
    response = client.post("/api/withdraw", json={"rater": "Anna", "sheet": judgments.sheet, "position": 11})
    assert (response.status_code, response.json["position"]) == (200, 11)
    assert client.get("/api/place?rater=Bo").json["position"] == 0


def test_nothing_tells_who_wrote_an_answer(client, judgments, valid):
    responses = [client.get(path) for path in ("/", "/page.js", "/page.css")]
    for position in range(12):
        responses.append(client.get("/api/place?rater=Anna"))
        responses.append(client.get(f"/picture/{judgments.sheet}/{position}"))
        responses.append(client.post("/api/judge", json={**valid, "position": position}))
        responses.append(client.post("/api/judge", json={**valid, "position": position}))
    names = [*SYSTEMS, "human", *(f"1{i:02}" for i in range(14)), *(f"image{i}" for i in range(6))]
    for response in responses:
        body = b"" if response.mimetype == "image/jpeg" else response.data
        seen = f"{dict(response.headers)} {response.request.path} {body.decode()}".replace(judgments.sheet, "")
        if response.request.path.startswith("/page") or response.request.path == "/":
            assert not [name for name in SYSTEMS if name in seen]
        else:
            values = re.sub(r"'Content-Length': '\d+'", "", seen)
            assert not [name for name in names if re.search(rf"\b{name}\b", values)]
    writers = {judgments.item(i).writer for i in range(12)}
    assert writers == {"human", *SYSTEMS}
    keys = {frozenset(r.json) for r in responses if r.status_code == 200 and r.mimetype == "application/json"}
    assert keys == {frozenset({"rater", "sheet", "position", "of", "question", "answer"})}  # the same for all writers


def test_the_page_is_its_own_and_needs_nothing_from_elsewhere(client):
    response = client.get("/")
    assert response.status_code == 200 and response.mimetype == "text/html"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    for part in ("html", "css", "js"):
        text = PAGE.with_suffix(f".{part}").read_text(encoding="utf-8")
        assert not re.search(r"https?://|(?:src|href)=\"//", text)
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="([^"]+)"', text)) == {"data:,", "/page.css", "/page.js"}
    script = client.get("/page.js")
    assert script.mimetype in ("text/javascript", "application/javascript")
    for key in set(re.findall(r'data-(?:text|label)="(\w+)"', text)):  # in both languages
        assert len(re.findall(rf"\b{key}:", script.text)) == 2, key


def test_only_pictures_of_the_sheet(client, judgments, fmiqa):
    dataset = open_dataset(fmiqa, "val")
    for position in range(12):
        response = client.get(f"/picture/{judgments.sheet}/{position}")
        assert response.data == dataset.image(judgments.item(position).record)
        assert response.mimetype == "image/jpeg" and Image.open(io.BytesIO(response.data)).size == (64, 48)
    sheet = judgments.sheet
    for path in (f"{sheet}/12", f"{sheet}/-1", f"{sheet}/99999999999999999999", "other/0", f"{sheet}/image0", sheet):
        response = client.get(f"/picture/{path}")
        assert response.status_code == 404 and list(response.json) == ["error"]
    for path in ("/ratings.sqlite", "/page.html", "/page.py", "/picture/../server.py", "/static/page.js"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"position": 1}, 409, "position 1 is not Anna's next, which is 0"),
        ({"position": 12}, 400, "position 12 is not on the sheet: it has 0 to 11"),
        ({"position": -1}, 400, "position -1 is not on the sheet: it has 0 to 11"),
        ({"position": 10**100}, 400, "is not on the sheet"),
        ({"position": "0"}, 400, "position must be a whole number"),
        ({"position": 0.0}, 400, "position must be a whole number"),
        ({"position": False}, 400, "position must be a whole number"),
        ({"quality": 3}, 400, "quality 3 is out of range: it must be 0, 1 or 2"),
        ({"quality": -1}, 400, "quality -1 is out of range"),
        ({"quality": True}, 400, "quality must be a whole number"),
        ({"quality": float("nan")}, 400, "quality must be a whole number"),
        ({"quality": None}, 400, "quality must be a whole number"),
        ({"passed": 1}, 400, "passed must be true or false"),
        ({"passed": "yes"}, 400, "passed must be true or false"),
        ({"rater": ""}, 400, "rater must be a name of 1 to 40 characters"),
        ({"rater": 7}, 400, "rater must be text"),
        ({"rater": "x" * 41}, 400, "rater must be a name"),
        ({"system": "human"}, 400, "send a JSON object with exactly rater, sheet, position, passed, quality"),
        ({"sheet": "other"}, 409, "this is a judgment of another sheet"),
    ],
)
def test_refused_judgments_store_nothing(client, judgments, valid, changes, status, message):
    response = client.post("/api/judge", json=valid | changes)
    assert response.status_code == status
    assert list(response.json) == ["error"] and message in response.json["error"]
    assert not list(judgments.valid()) and judgments.place("Anna") == 0


@pytest.mark.parametrize("missing", ["rater", "sheet", "position", "passed", "quality"])
def test_incomplete_judgments_store_nothing(client, judgments, valid, missing):
    del valid[missing]
    response = client.post("/api/judge", json=valid)
    assert response.status_code == 400 and "with exactly rater, sheet" in response.json["error"]
    assert not list(judgments.valid())


def test_a_judgment_is_taken_once(client, judgments, valid):
    assert client.post("/api/judge", json=valid).status_code == 201
    response = client.post("/api/judge", json=valid | {"passed": False})
    assert (response.status_code, response.json) == (409, {"error": "position 0 is already judged by Anna"})
    assert [(judged.passed, judged.quality) for judged in judgments.valid()] == [(True, 2)]
    response = client.post("/api/withdraw", json={"rater": "Anna", "sheet": judgments.sheet, "position": 1})
    assert (response.status_code, response.json) == (409, {"error": "position 1 is not Anna's last judgment"})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 800, b'"text"'])
def test_bodies_that_are_no_judgment(client, judgments, body):
    response = client.post("/api/judge", data=body, content_type="application/json")
    assert response.status_code == 400 and list(response.json) == ["error"]
    assert "\n" not in response.json["error"]


def test_other_requests_that_are_refused(client, judgments, valid):
    assert client.post("/api/judge", json=valid | {"rater": "x" * 5000}).status_code == 413
    assert client.get("/api/judge").status_code == 405
    assert client.get("/api/place").status_code == 400
    assert client.get("/nowhere").json == {"error": client.get("/nowhere").json["error"]}
    assert not list(judgments.valid())


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:3000"},  # another server of the same machine
        {"Origin": "https://localhost"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example:8765"},  # whose name server says 127.0.0.1
        {"Host": "evil.example:8765", "Origin": "http://evil.example:8765"},
        {"Host": "localhost.evil.example"},
    ],
)
def test_other_sites_cannot_judge(client, judgments, valid, headers):
    response = client.post("/api/judge", json=valid, headers=headers)
    assert response.status_code in (400, 403) and list(response.json) == ["error"]
    assert not list(judgments.valid())
    if "Host" in headers:
        assert client.get("/api/place?rater=Anna", headers=headers).status_code in (400, 403)
        assert client.get(f"/picture/{judgments.sheet}/0", headers=headers).status_code in (400, 403)


def test_a_form_of_another_site_cannot_judge(client, judgments, valid):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = client.post("/api/judge", data=b"{}", content_type=kind)
        assert response.status_code == 415 and "send JSON" in response.json["error"]


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:1", "[::1]:1", "192.168.1.7:1", socket.gethostname()])
def test_own_addresses(client, host):
    assert client.get("/api/place?rater=Anna", headers={"Host": host}).status_code == 200


def test_a_damaged_picture_is_one_json_line(judgments):
    def damaged(record: int) -> bytes:
        raise OSError("secret path")

    client = make_app(judgments, damaged, "127.0.0.1").test_client()
    response = client.get(f"/picture/{judgments.sheet}/0", headers={"Host": "127.0.0.1"})
    assert response.status_code == 500 and list(response.json) == ["error"] and "secret" not in response.text


def test_sockets():
    with listen("127.0.0.1", 0) as bound:
        host, port = bound.getsockname()
        assert is_loopback(host) and address(host, port) == f"http://127.0.0.1:{port}/"
        with pytest.raises(UserError, match=rf"127.0.0.1:{port}: cannot listen there \(Address already in use\)"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen there"):
        listen("no such host", 0)
    assert not is_loopback("0.0.0.0") and is_loopback("::1")
    assert address("::1", 80) == "http://[::1]:80/"
    assert address("0.0.0.0", 80) == f"http://{socket.gethostname()}:80/"
