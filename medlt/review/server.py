"""Serves the review page on this machine alone: http://127.0.0.1:PORT/TOKEN/.

A request without the token, or with another Host or Origin (DNS rebinding, pages of other sites), gets 403. There are
six addresses and no other; none of them opens a file by its name. An image is named by its place in the reader's order,
and all are encoded without compression and without metadata, so that they have one size in bytes.

| address | |
|---|---|
| GET /TOKEN/, page.css, page.js | the page |
| GET state | the reader's name, questions, and of each place the finding to be read and the answer |
| GET image/N | the image at place N, PNG |
| POST answer, finish | an answer to one image; end of the review |
"""

from __future__ import annotations

import hmac
import io
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from threading import Thread
from typing import Any

from torch import Tensor

from medlt.review.answers import QUESTIONS, AnswerFile, ChangedFileError, ReaderAnswer, clean_comment
from medlt.types import InputError

HOST = "127.0.0.1"
LONGEST_BODY = 2**16
"""Longest body of a request, bytes."""
PARTS = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Reading:
    """What one reader reads: uids in the reader's order, the finding of each, images uint8 [N,1,S,S], and the answers.

    questions: names in `QUESTIONS`.
    """

    uids: Sequence[str]
    findings: Sequence[str]
    images: Tensor
    answers: AnswerFile
    seed: int
    questions: tuple[str, ...]

    def state(self) -> dict[str, Any]:
        """Return what the page shows: no uid, no label, no kind."""
        items = [{"finding": self.findings[i], "answer": self._texts(i)} for i in range(len(self.uids))]
        return {"reader": self.answers.path.stem, "questions": list(self.questions), "items": items}

    def answer(self, i: int) -> ReaderAnswer:
        """Return the answer to the image at place i; a blank one if there is none yet."""
        blank = ReaderAnswer(self.seed, self.uids[i], self.findings[i])
        return self.answers.answers.get((self.seed, self.uids[i]), blank)

    def answered(self) -> int:
        """Return how many images have an answer to every question."""
        return sum(self.answer(i).answered(self.questions) for i in range(len(self.uids)))

    def save(self, given: Any) -> None:
        """Save an answer of the page. Raises ValueError for another form, ChangedFileError as `AnswerFile.save`."""
        if not isinstance(given, dict) or set(given) != {"image", *QUESTIONS, "comment"}:
            raise ValueError("an answer has an image, the questions and a comment")
        i, values = given.pop("image"), given
        if type(i) is not int or not 0 <= i < len(self.uids):
            raise ValueError("no such image")
        for question, allowed in QUESTIONS.items():
            if values[question] not in ("", *(allowed if question in self.questions else ())):
                raise ValueError(f"no such answer to {question}")
        if not isinstance(values["comment"], str):
            raise ValueError("a comment is a text")
        values["comment"] = clean_comment(values["comment"])
        self.answers.save(ReaderAnswer(self.seed, self.uids[i], self.findings[i], **values))

    def png(self, i: int) -> bytes:
        """Return the image at place i as PNG without compression: equal sizes in pixels give equal sizes in bytes."""
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(self.images[i, 0].numpy()).save(out, "PNG", compress_level=0)
        return out.getvalue()

    def _texts(self, i: int) -> dict[str, str]:
        known = asdict(self.answer(i))
        return {name: known[name] for name in (*QUESTIONS, "comment")}


def _whole(text: str) -> int | None:
    """Return a short decimal number, else None."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


@cache
def part(name: str) -> bytes:
    """Return a file of the page, which is part of the package."""
    return (Path(__file__).parent / name).read_bytes()


@dataclass
class ReviewServer:
    """The server of one reading. `port` 0 takes a free one. Raises InputError if the port is in use."""

    reading: Reading
    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    def __post_init__(self) -> None:
        try:
            self._server = _Server((HOST, self.port), _ReviewHandler)
        except OSError as error:
            raise InputError(f"--port {self.port}: {error.strerror}; choose another port, or none") from None
        self.port = int(self._server.server_address[1])
        self._server.review = self

    @property
    def address(self) -> str:
        """The address of the page, with its token."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def serve(self) -> None:
        """Answer requests until the page ends the review, or the process is interrupted."""
        try:
            self._server.serve_forever(poll_interval=0.1)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """End `serve`, from another thread."""
        Thread(target=self._server.shutdown).start()

    def trusts(self, host: str | None, origin: str | None) -> bool:
        """Return whether a request names this server in Host, and comes from its own page if it has an Origin."""
        hosts = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        return host in hosts and origin in (None, *(f"http://{one}" for one in hosts))


class _Server(ThreadingHTTPServer):
    """Threads end with the process; another program's socket is never shared."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"
    review: ReviewServer

    def server_bind(self) -> None:
        """Bind without the name lookup of `HTTPServer`, which may use the network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, int(self.server_address[1])


class _ReviewHandler(BaseHTTPRequestHandler):
    """One request."""

    server: _Server
    server_version, sys_version = "medlt", ""
    timeout = 30
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if (name := self._named()) is None:
            return
        reading = self.server.review.reading
        number = name.removeprefix("image/")
        if name in PARTS:
            file, kind = PARTS[name]
            self._reply(200, part(file), kind)
        elif name == "state":
            self._reply(200, json.dumps(reading.state()).encode(), "application/json")
        elif name != number and (i := _whole(number)) is not None and i < len(reading.uids):
            self._reply(200, reading.png(i), "image/png")
        else:
            self.send_error(404, "no such address")

    def do_POST(self) -> None:
        if (name := self._named()) is None or (body := self._body()) is None:
            return
        if name not in ("answer", "finish"):
            self.send_error(404, "no such address")
            return
        try:
            given = json.loads(body)
            if name == "answer":
                self.server.review.reading.save(given)
        except ChangedFileError as error:
            self.send_error(409, str(error))
        except OSError as error:
            self.send_error(507, f"the answer cannot be written: {error.strerror}")
        except ValueError as error:
            self.send_error(400, str(error))
        else:
            self._reply(200, b"{}", "application/json")
            if name == "finish":
                self.server.review.stop()

    def _named(self) -> str | None:
        """Return the part of the address behind the token; None, after a reply, for a request that is refused."""
        review = self.server.review
        token, slash, name = self.path.removeprefix("/").partition("/")
        trusted = review.trusts(self.headers.get("Host"), self.headers.get("Origin"))
        if trusted and slash and hmac.compare_digest(token.encode(), review.token.encode()):
            return name
        self.send_error(403, "open the address that medlt review printed")
        return None

    def _body(self) -> bytes | None:
        """Return the JSON text of a request; None, after a reply, for another type or length."""
        length = _whole(self.headers.get("Content-Length", ""))
        if self.headers.get("Content-Type") != "application/json" or "Transfer-Encoding" in self.headers:
            self.send_error(415, "give JSON")
        elif length is None or length > LONGEST_BODY:
            self.send_error(413, "too long")
        else:
            return self.rfile.read(length)
        return None

    def _reply(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        text = kind.startswith("text/")
        own = {"Content-Type": f"{kind}; charset=utf-8" if text else kind, "Content-Length": str(len(body))}
        own |= {"Connection": "close"} if self.close_connection else {}
        for name, value in {**own, **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Reply with one line of plain text, and close the connection: an unread body cannot become a request."""
        self.close_connection = True
        self._reply(code, (message or "refused").encode(), "text/plain")

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a line would hold the token."""
