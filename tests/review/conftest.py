"""A reading of known content, and a client that talks to its server over HTTP."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from medlt.review.answers import QUESTIONS, AnswerFile, reader_file
from medlt.review.reading_list import order
from medlt.review.server import Reading, ReviewServer
from medlt.rng import torch_generator


@dataclass
class Client:
    """Requests to a review server; a reply is (status, headers, body)."""

    server: ReviewServer

    def __call__(
        self, path: str, body: Any = None, *, token: bool = True, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        base = self.server.address if token else f"http://127.0.0.1:{self.server.port}/"
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = {} if data is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(base + path, data, {**kind, **given})
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status, dict(reply.headers), reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()


UIDS = [f"s{i}" for i in range(6)] + [f"r{i}" for i in range(6)]


def reading(folder: Path, reader: str, seed: int = 3) -> Reading:
    """Twelve images: smooth ones, which compress well, are synthetic (s0 ...), and noise is real (r0 ...)."""
    uids = order(UIDS, seed, reader)
    noise = torch.rand(len(uids), 1, 16, 16, generator=torch_generator("reading"))
    smooth = torch.tensor([uid.startswith("s") for uid in uids])[:, None, None, None]
    pixels = (torch.where(smooth, noise[:, :, :1, :1], noise) * 255).to(torch.uint8)
    findings = ["Mass" if int(uid[1:]) % 2 else "Hernia" for uid in uids]
    answers = AnswerFile.open(reader_file(folder, reader))
    return Reading(uids, findings, pixels, answers, seed, tuple(QUESTIONS))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Serve a reading of a reader; servers stop after the test."""
    servers: list[tuple[ReviewServer, threading.Thread]] = []

    def start(reader: str = "anna", seed: int = 3) -> Client:
        server = ReviewServer(reading(tmp_path, reader, seed))
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        servers.append((server, thread))
        return Client(server)

    yield start
    for server, thread in servers:
        if thread.is_alive():
            server.stop()
        thread.join(10)
        assert not thread.is_alive()
