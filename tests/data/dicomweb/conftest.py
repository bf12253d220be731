"""A DICOMweb server on this machine, with the faults that real ones have."""

import base64
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medlt.data.dicomweb import DicomWebServer

KEYS = ("studies", "series", "instances")
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
RETURNED = (("StudyDate", "PatientID"), ("Modality",), ("SOPClassUID",))
BOUNDARY = "medlt boundary"


@dataclass
class Stored:
    """One instance: its file, and what a search answers, by keyword."""

    raw: bytes
    tags: dict[str, str]

    @property
    def sop(self) -> str:
        return self.tags["SOPInstanceUID"]


@dataclass
class Archive:
    """The instances; `cap` results a page at most; `faults` of an instance by SOP UID, used up one a request.

    A fault: an HTTP status, or cut, unlengthed, html, other, plain, drop; "always " before it repeats it.
    """

    stored: list[Stored]
    cap: int = 1000
    pages: bool = True
    unquotes: bool = True
    counts_from_first: bool = False
    largest: int = 10**9
    """A larger limit is refused."""
    login: str = ""
    faults: dict[str, list[str]] = field(default_factory=dict)
    search_faults: dict[str, list[str]] = field(default_factory=dict)
    """By path, such as /dicom-web/studies."""
    searches: list[str] = field(default_factory=list)
    retrieved: Counter[str] = field(default_factory=Counter)
    paths: list[str] = field(default_factory=list)

    def fault(self, faults: dict[str, list[str]], key: str) -> str:
        waiting = faults.get(key, [])
        if not waiting:
            return ""
        return waiting[0].removeprefix("always ") if waiting[0].startswith("always ") else waiting.pop(0)

    def matches(self, one: Stored, name: str, value: str) -> bool:
        """Exact values, wildcards, ranges of dates; no list of values (PS3.18 8.3.4.1 has those of UIDs alone)."""
        own = one.tags.get(name)
        if own is None:
            return True  # as real servers ignore what they do not know
        if name == "StudyDate" and "-" in value:
            first, _, last = value.partition("-")
            return (first or "0") <= own <= (last or "9")
        return fnmatchcase(own, value)

    def find(self, level: int, uids: list[str], query: list[tuple[str, str]]) -> list[dict[str, Any]]:
        """One page of results of a level, 0 to 2, below `uids`."""
        options = dict(query)
        limit = min(int(options.pop("limit", self.cap)), self.cap)
        offset = int(options.pop("offset", 0)) if self.pages else 0
        some = [
            s
            for s in self.stored
            if all(s.tags[k] == uid for k, uid in zip(UIDS, uids, strict=False))
            and all(self.matches(s, *pair) for pair in options.items())
        ]
        results: dict[str, dict[str, Any]] = {}
        for s in some:
            names = (UIDS[level], *RETURNED[level])
            item = {f"{int(Tag(n)):08X}": {"vr": "UI", "Value": [s.tags[n]]} for n in names if n in s.tags}
            results.setdefault(s.tags[UIDS[level]], item)
        return list(results.values())[offset : limit + (0 if self.counts_from_first else offset)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    archive: Archive

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, kind: str = "text/plain", body: bytes = b"", sent: int | None = None) -> None:
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if sent is None else body[:sent])
        self.close_connection = self.close_connection or sent is not None

    def do_GET(self) -> None:
        url, archive = urlsplit(self.path), self.archive
        archive.paths.append(self.path)
        accepted = {f"Bearer {archive.login}", f"Basic {base64.b64encode(archive.login.encode()).decode()}"}
        if archive.login and self.headers.get("Authorization") not in accepted:
            return self.answer(401)
        parts = url.path.removeprefix("/dicom-web").strip("/").split("/")
        if not url.path.startswith("/dicom-web/") or tuple(parts[::2]) != KEYS[: (len(parts) + 1) // 2]:
            return self.answer(404)
        if len(parts) == 6:
            return self.retrieve(parts[1::2])
        archive.searches.append(self.path)
        if fault := archive.fault(archive.search_faults, url.path):
            if fault == "drop":
                self.close_connection = True
                return None
            return self.answer(200, "text/html", b"<p>hello") if fault == "html" else self.answer(int(fault))
        if int(dict(parse_qsl(url.query)).get("limit", 0)) > archive.largest:
            return self.answer(400)
        plain = [tuple(pair.split("=", 1)) for pair in url.query.split("&")]
        page = archive.find(len(parts) // 2, parts[1::2], parse_qsl(url.query) if archive.unquotes else plain)
        body = json.dumps(page).encode()
        return self.answer(200, "application/dicom+json", body) if page else self.answer(204)

    def retrieve(self, uids: list[str]) -> None:
        archive = self.archive
        if "transfer-syntax=*" not in self.headers["Accept"]:
            return self.answer(406)
        archive.retrieved[uids[2]] += 1
        this = [s for s in archive.stored if [s.tags[k] for k in UIDS] == uids]
        if not this:
            return self.answer(404)
        fault = archive.fault(archive.faults, uids[2])
        raw = next(s.raw for s in archive.stored if (s.sop != uids[2]) == (fault == "other"))
        raw = this[0].raw if fault != "other" else raw
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + raw + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'
        if fault.isdigit():
            return self.answer(int(fault))
        if fault == "html":
            return self.answer(200, "text/html", b"<html><body>Please log in</body></html>")
        if fault == "plain":
            return self.answer(200, "application/dicom", raw)
        if fault == "drop":
            self.close_connection = True
            return None
        if fault == "unlengthed":  # the end of the connection is the end of the body (RFC 9112 6.3)
            self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode())
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return None
        return self.answer(200, kind, body, len(body) // 2 if fault == "cut" else None)


Serve = Callable[..., tuple[Archive, str]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(stored, certificate=None, **archive) -> (archive, URL)."""
    running: list[ThreadingHTTPServer] = []

    def start(stored: list[Stored], certificate: Path | None = None, **options: Any) -> tuple[Archive, str]:
        archive = Archive(stored, **options)
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"archive": archive}))
        server.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket, scheme = context.wrap_socket(server.socket, server_side=True), "https"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        return archive, f"{scheme}://127.0.0.1:{server.server_port}/dicom-web"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def stored(header: Callable[..., Dataset]) -> list[Stored]:
    """Eight instances, of five studies of three modalities; one study has two series, one series two instances."""
    rows = [
        # study, series, modality, date
        (1, 1, "DX", "20200102"),
        (1, 1, "DX", "20200102"),
        (1, 2, "SR", "20200102"),
        (2, 3, "CR", "20200705"),
        (3, 4, "CT", "20201231"),
        (4, 5, "DX", "20210101"),
        (4, 6, "CR", "20210101"),
        (5, 7, "CR", "20191231"),
    ]
    files = []
    for at, (study, series, modality, date) in enumerate(rows):
        pixels = np.random.default_rng(at).integers(0, 4095, (24, 20)).astype(np.uint16)
        tags = {
            "StudyInstanceUID": f"1.2.3.{study}",
            "SeriesInstanceUID": f"1.2.3.{study}.{series}",
            "SOPInstanceUID": f"1.2.3.{study}.{series}.{at}",
            "Modality": modality,
            "StudyDate": date,
            "PatientID": f"MRN-{study}",
            "PatientName": f"Quimby^Wanda{study}",
        }
        data, buffer = header(pixels, **tags), BytesIO()
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.save_as(buffer, enforce_file_format=True)
        files.append(Stored(buffer.getvalue(), tags))
    return files


@pytest.fixture
def connect() -> Iterator[Callable[..., DicomWebServer]]:
    """connect(url, **login) -> a server that is tried again without any wait."""
    with ExitStack() as opened:
        yield lambda url, **options: opened.enter_context(DicomWebServer(url, wait_s=0.0, **options))
