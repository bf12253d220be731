"""The review page over real HTTP: who may open it, what it shows, and that no answer is lost."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlt.review.answers import AnswerFile, read_answers
from medlt.review.server import HOST, ReviewServer
from medlt.types import InputError

Serve = Callable[..., Any]
ANSWER: dict[str, Any] = {"image": 0, "origin": "real", "plausibility": "", "presence": "absent", "comment": ""}


def raw(client: Any, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> int:
    """The status of a request whose path and headers are sent as they are."""
    connection = http.client.HTTPConnection(HOST, client.server.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()


def test_only_this_machine_can_reach_the_server(serve: Serve) -> None:
    server = serve().server
    assert server._server.socket.getsockname()[0] == "127.0.0.1"
    assert len(server.token) >= 40
    assert serve().server.token != server.token


@pytest.mark.parametrize("path", ["", "state", "image/0", "page.js", "x/state", "favicon.ico"])
def test_a_request_without_the_token_is_refused(serve: Serve, path: str) -> None:
    client = serve()
    status, headers, body = client(path, token=False)
    assert status == 403
    assert client.server.token not in str(headers) + body.decode()


def test_an_answer_without_the_token_is_not_saved(serve: Serve, tmp_path: Path) -> None:
    assert serve()("answer", ANSWER, token=False)[0] == 403
    assert not (tmp_path / "review" / "anna.csv").exists()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:PORT", "localhost.evil:PORT"]
)
def test_another_host_name_is_refused(serve: Serve, host: str) -> None:
    client = serve()
    port = str(client.server.port)
    path = f"/{client.server.token}/state"
    assert raw(client, path, Host=host.replace("PORT", port)) == 403
    assert raw(client, path, Host=f"localhost:{port}") == raw(client, path, Host=f"127.0.0.1:{port}") == 200


def test_a_page_of_another_site_cannot_send_an_answer(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    assert client("answer", ANSWER, Origin="http://evil.example")[0] == 403
    assert client("answer", ANSWER, Content_Type="text/plain")[0] == 415
    assert not (tmp_path / "review" / "anna.csv").exists()
    assert client("answer", ANSWER, Origin=f"http://127.0.0.1:{client.server.port}")[0] == 200


@pytest.mark.parametrize(
    "name",
    ["../state", "..%2f..%2fetc/passwd", "page.html", "server.py", "../anna.csv", "image/../state", "image/-1",
     "image/12", "image/0x0", "image/", "image", "image/9999999999", "review/anna.csv", "//etc/passwd", "state?x=1",
     "answer"],
)  # fmt: skip
def test_nothing_else_can_be_read(serve: Serve, name: str) -> None:
    client = serve()
    assert raw(client, f"/{client.server.token}/{name}") in (403, 404)


def test_a_method_or_a_body_that_is_not_of_the_page_is_refused_in_one_line(serve: Serve) -> None:
    client = serve()
    path = f"/{client.server.token}/"
    assert raw(client, path, "DELETE") == 501
    assert raw(client, path + "state", "POST", b"{}", Content_Type="application/json", Content_Length="2") == 404
    assert raw(client, path + "answer", "POST", Content_Type="application/json", Content_Length="99999999") == 413
    assert raw(client, path + "answer", "POST", Content_Type="application/json", Content_Length="-1") == 413
    assert b"<" not in client("<script>")[2]


@pytest.mark.parametrize(
    "change",
    [{"image": 12}, {"image": -1}, {"image": True}, {"image": "0"}, {"origin": "maybe"}, {"presence": 1}, {"extra": ""},
     {"comment": 3}, {"comment": "x" * 2001}],
)  # fmt: skip
def test_a_wrong_answer_is_refused_and_not_saved(serve: Serve, tmp_path: Path, change: dict[str, Any]) -> None:
    assert serve()("answer", {**ANSWER, **change})[0] == 400
    assert not (tmp_path / "review" / "anna.csv").exists()


def test_the_page_loads_nothing_from_elsewhere(serve: Serve) -> None:
    client = serve()
    _, headers, page = client("")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert set(policy.replace(";", "").split()) & {"*", "http:", "https:", "'unsafe-inline'", "'unsafe-eval'"} == set()
    texts = page + client("page.css")[2] + client("page.js")[2]
    assert b"http" not in texts.replace(b"HTTP", b"")
    assert b" style=" not in page
    assert b"<script>" not in page
    for path in ("", "state", "image/0", "nothing"):
        assert client(path)[1]["Cache-Control"] == "no-store"
        assert client(path)[1]["Referrer-Policy"] == "no-referrer"


def test_an_answer_is_on_disk_when_the_reply_arrives(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    uids = client.server.reading.uids
    assert client("answer", {**ANSWER, "image": 4, "comment": 'a line\nand, "another"'})[0] == 200
    saved = read_answers(tmp_path / "review" / "anna.csv")[3, uids[4]]
    assert (saved.origin, saved.plausibility, saved.presence) == ("real", "", "absent")
    assert saved.comment == 'a line and, "another"'
    client("answer", {**ANSWER, "image": 4, "origin": "synthetic"})
    assert read_answers(tmp_path / "review" / "anna.csv")[3, uids[4]].origin == "synthetic"
    assert [path.name for path in (tmp_path / "review").iterdir()] == ["anna.csv"]


def test_a_reading_goes_on_where_a_killed_one_ended(serve: Serve) -> None:
    first = serve()
    for i in (0, 3):
        first("answer", {**ANSWER, "image": i, "plausibility": "plausible"})
    second = serve()  # no stop of the first: its process is gone
    items = json.loads(second("state")[2])["items"]
    assert [i for i, item in enumerate(items) if item["answer"]["origin"]] == [0, 3]
    assert second.server.reading.answered() == 2


KILLED = """
import os, runpy, signal, sys, threading
from pathlib import Path
known = runpy.run_path(sys.argv[1])
server = known["ReviewServer"](known["reading"](Path(sys.argv[2]), "anna"))
threading.Thread(target=server.serve, daemon=True).start()
body = dict(image=5, origin="real", plausibility="plausible", presence="present", comment="")
assert known["Client"](server)("answer", body)[0] == 200
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_answer_survives_a_killed_process(serve: Serve, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("conftest.py"))
    done = subprocess.run([sys.executable, "-c", KILLED, script, str(tmp_path)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    items = json.loads(serve()("state")[2])["items"]
    assert [i for i, item in enumerate(items) if item["answer"]["presence"] == "present"] == [5]


def test_answers_of_several_windows_are_all_kept(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    jobs = [threading.Thread(target=client, args=("answer", {**ANSWER, "image": i})) for i in range(12)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(read_answers(tmp_path / "review" / "anna.csv")) == 12


def test_a_file_that_a_person_changed_is_not_overwritten(serve: Serve, tmp_path: Path) -> None:
    client, file = serve(), tmp_path / "review" / "anna.csv"
    client("answer", ANSWER)
    file.write_text(file.read_text() + "9,mine,Mass,real,,,\n")
    status, _, body = client("answer", {**ANSWER, "image": 1})
    assert status == 409
    assert b"start `medlt review` again" in body
    assert "9,mine" in file.read_text()
    assert (9, "mine") in AnswerFile.open(file).answers


def test_two_readers_see_the_same_images_in_another_order(serve: Serve) -> None:
    anna, ben = (serve(name).server.reading for name in ("anna", "ben"))
    assert list(anna.uids) != list(ben.uids)
    assert sorted(anna.uids) == sorted(ben.uids)
    assert list(serve("anna").server.reading.uids) == list(anna.uids)


def client_sees(client: Any) -> np.ndarray:
    """Everything that the page gets about each image but its pixels, as numbers [N,D]."""
    items = json.loads(client("state")[2])["items"]
    names = sorted({item["finding"] for item in items})
    rows = []
    for i, item in enumerate(items):
        status, headers, body = client(f"image/{i}")
        assert status == 200
        head = body[: body.index(b"IDAT")]
        headers.pop("Date")
        texts = json.dumps([headers, item["answer"], sorted(item)]) + head.hex()
        rows.append([i, i % 2, names.index(item["finding"]), len(body), len(texts), sum(texts.encode())])
    return np.array(rows, float)


def test_nothing_but_the_pixels_depends_on_the_kind(serve: Serve) -> None:
    """Single thresholds on all that the client sees, over many orders, separate the kinds no better than chance."""
    seen, kinds = [], []
    for reader in [f"reader{i}" for i in range(8)]:
        client = serve(reader)
        seen.append(client_sees(client))
        kinds.append([uid.startswith("s") for uid in client.server.reading.uids])
        shown = json.dumps(json.loads(client("state")[2])["items"])
        assert not any(uid in shown for uid in client.server.reading.uids)
    values, synthetic = np.concatenate(seen), np.concatenate(kinds)
    assert {len(set(values[:, column])) for column in (3, 4, 5)} == {1}  # sizes and headers are the same for all
    for column in (0, 1, 2):
        at = values[:, column] > np.median(values[:, column])
        assert abs(synthetic[at].mean() - synthetic[~at].mean()) < 0.35  # 3.4 standard errors of 96 images


def test_compression_would_give_the_kind_away(serve: Serve) -> None:
    """The control of the test above: with it, the smooth images are smaller files."""
    import zlib

    reading = serve().server.reading
    sizes = [len(zlib.compress(reading.images[i].numpy().tobytes())) for i in range(12)]
    smooth = [size for size, uid in zip(sizes, reading.uids, strict=True) if uid.startswith("s")]
    assert max(smooth) < min(set(sizes) - set(smooth))


def test_the_page_ends_the_review(serve: Serve) -> None:
    client = serve()
    assert client("finish", {})[0] == 200
    for _ in range(50):
        if client.server._server.socket.fileno() == -1:
            break
        threading.Event().wait(0.1)
    with pytest.raises(OSError, match="refused"):
        client("state")


def test_a_port_in_use_is_one_clear_line(serve: Serve) -> None:
    client = serve()
    with pytest.raises(InputError, match=r"--port .*choose another"):
        ReviewServer(client.server.reading, client.server.port)
