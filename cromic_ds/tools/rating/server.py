"""The web page of a rating and its requests.

    GET  /                       the page; /page.css and /page.js belong to it
    GET  /api/place?rater=NAME   the next position of NAME: {"rater", "sheet", "position", "of"}, and while answers are
                                 left to judge {"question", "answer"}
    POST /api/judge              {"rater", "sheet", "position", "passed": true | false, "quality": 0 | 1 | 2};
                                 answers with the next position (201)
    POST /api/withdraw           {"rater", "sheet", "position"}: withdraws the last judgment, answers with its position
    GET  /picture/SHEET/POSITION the picture at a position of the sheet; there is no other way to a picture

A refused request gets {"error": one line} with status 400 (malformed, out of range), 403 (another site), 404, 409 (already
judged, or out of turn), 413 or 415, and nothing is stored. No response says who wrote an answer: items are identified by their
position only, and `sheet` is a hash that changes with the sheet.

Every site that the rater's browser has open can send requests to a server on the loopback interface. So a request must name
this machine as its host (against DNS rebinding), and a POST must be JSON and come from the page itself.
"""

import ipaddress
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from flask import Flask, Response, jsonify, request, send_file
from werkzeug.exceptions import Forbidden, HTTPException, NotFound, UnsupportedMediaType
from werkzeug.serving import WSGIRequestHandler, make_server

from cromic_ds.data.dataset import Dataset
from cromic_ds.errors import UserError
from cromic_ds.tools.rating.judgments import Conflict, Judgments, Malformed, rater_name
from cromic_ds.tools.rating.sheet import HUMAN

PAGE = Path(__file__).with_name("page.html")

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def serve(judgments: Judgments, dataset: Dataset, named_host: str, port: int) -> None:
    """Listen until interrupted. Every judgment is stored at once, so nothing has to be saved at the end.
    Raises UserError if the address cannot be listened on."""
    one_at_a_time = threading.Lock()  # a data set's cache of open files is not thread-safe

    def picture(record: int) -> bytes | None:
        with one_at_a_time:
            return dataset.image(record)

    with listen(named_host, port) as bound:
        host, port = bound.getsockname()[:2]
        app = make_app(judgments, picture, named_host)
        server = make_server(host, port, app, threaded=True, request_handler=_Quiet, fd=bound.fileno())
        if not is_loopback(host):
            open_to_all = "lets everyone who can reach this machine see the pictures and rate under any name"
            print(f"warning: --host {named_host} {open_to_all}", file=sys.stderr)
        systems = ", ".join(judgments.about["systems"])
        print(f"{judgments.n_items:,} answers to judge, of {HUMAN} and {systems}; judgments in {judgments.path}")
        with suppress(KeyboardInterrupt):  # the server itself handles it once it serves
            print(f"rate at {address(host, port)} (Ctrl-C stops; the same command continues)", flush=True)
            server.serve_forever()
        server.server_close()


def make_app(judgments: Judgments, picture: Callable[[int], bytes | None], host: str) -> Flask:
    """Return the application. picture: returns a record's JPEG bytes; it can be called from many threads."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = 800  # bytes; too little for JSON nested deeper than Python can parse
    cast(Any, app.json).ensure_ascii = False
    own_names = {"localhost", socket.gethostname().lower(), host.lower()}

    @app.before_request
    def refuse_other_sites() -> None:
        if not _is_own(request.host, own_names):
            raise Forbidden("this host name is not this machine's; open the page by its address")
        if request.method != "POST":
            return
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "same-origin")
        if origin not in (None, f"http://{request.host}") or site != "same-origin":
            raise Forbidden("judgments are taken from the rating page only")
        if request.mimetype != "application/json":
            raise UnsupportedMediaType("send JSON (Content-Type: application/json)")

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description), error.code or 500

    @app.errorhandler(Malformed)
    @app.errorhandler(Conflict)
    def not_stored(error: Malformed | Conflict) -> tuple[Response, int]:
        return jsonify(error=str(error)), 400 if isinstance(error, Malformed) else 409

    @app.get("/", defaults={"kind": "html"})
    @app.get("/page.<any(css, js):kind>")
    def page(kind: str) -> Response:
        return send_file(PAGE.with_suffix(f".{kind}"))

    @app.get("/picture/<sheet>/<int:position>")
    def picture_at(sheet: str, position: int) -> Response:
        item = judgments.item(position) if sheet == judgments.sheet else None
        if item is None:
            raise NotFound("no such picture on this sheet")
        response = Response(picture(item.record), mimetype="image/jpeg")
        response.headers["Cache-Control"] = "private, max-age=86400, immutable"
        return response

    @app.get("/api/place")
    def place() -> Response:
        return jsonify(place_of(request.args.get("rater")))

    @app.post("/api/judge")
    def judge() -> tuple[Response, int]:
        values = body({"passed": bool, "quality": int})
        judgments.judge(**values)
        return jsonify(place_of(values["rater"])), 201

    @app.post("/api/withdraw")
    def withdraw() -> Response:
        values = body({})
        judgments.withdraw(**values)
        return jsonify(place_of(values["rater"]))

    def body(fields: dict[str, type]) -> dict[str, Any]:
        """Return the request's JSON object: these fields and those of every judgment. Raises Malformed or Conflict."""
        values, fields = request.get_json(), {"rater": str, "sheet": str, "position": int} | fields
        if not isinstance(values, dict) or values.keys() != fields.keys():
            raise Malformed(f"send a JSON object with exactly {', '.join(fields)}")
        for name, kind in fields.items():
            if type(values[name]) is not kind:  # isinstance would accept true as the number 1
                words = {str: "text", int: "a whole number", bool: "true or false"}
                raise Malformed(f"{name} must be {words[kind]}")
        if values.pop("sheet") != judgments.sheet:
            raise Conflict("this is a judgment of another sheet than the server's")
        return values

    def place_of(rater: object) -> dict[str, Any]:
        name = rater_name(rater)
        position = judgments.place(name)
        place = {"rater": name, "sheet": judgments.sheet, "position": position, "of": judgments.n_items}
        item = judgments.item(position)
        return place | {"question": item.question, "answer": item.answer} if item else place

    return app


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port, or on a free port if it is 0. Raises UserError."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # allows a restart directly after a crash
        bound.bind(target)
        bound.listen(64)
    except OSError as error:
        problem = f"cannot listen there ({error.strerror})"
        raise UserError(f"{host}:{port}: {problem}; choose another --host or --port") from None
    return bound


def is_loopback(host: str) -> bool:
    """Return whether a bound (numeric) address can be reached from this machine only."""
    return ipaddress.ip_address(host).is_loopback


def address(host: str, port: int) -> str:
    """Return the URL of a bound address."""
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class _Quiet(WSGIRequestHandler):
    """Handles requests without logging them, because a log would contain the raters' names and times."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def _is_own(host: str, names: set[str]) -> bool:
    """Return whether a request's host is an IP address, which no name server can rebind, or one of our own names."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").split("%")[0]
        if name not in names:
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
