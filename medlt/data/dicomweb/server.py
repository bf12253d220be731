"""The connection to a DICOMweb server: pages of a search, and the file of an instance, with login, TLS and retries.

TLS certificates are always verified. No text of an exception is shown or logged: its URL may name a patient.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from pydicom.datadict import tag_for_keyword

from medlt.data.dicom.guard import LIMIT_FILE_BYTES
from medlt.files import digest
from medlt.folders import GROWING, subfolder
from medlt.types import InputError

try:
    import requests
    from dicomweb_client import DICOMwebClient
except ImportError:
    raise InputError("a DICOMweb server needs dicomweb-client; type: pip install 'medlt[dicomweb]'") from None

PAGE = 100  # of results; some servers refuse more than 200
ATTEMPTS = 4
TIMEOUT_S = (10, 60)  # to connect, and between two pieces of an answer
LOGIN_VARIABLE = "MEDLT_DICOMWEB_LOGIN"
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
SILENT = "no answer"
UIDS = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
_UID = re.compile(r"\d[\d.]{0,63}")  # wider than PS3.5 9.1, as archives are, and nothing but one part of a URL's path
_T = TypeVar("_T")
logger = logging.getLogger(__name__)


class Instance(NamedTuple):
    """An instance on the server; `problem` says why it, or its whole series or study, cannot be retrieved."""

    study: str
    series: str = ""
    sop: str = ""
    modality: str = ""
    problem: str = ""

    @property
    def file(self) -> str:
        """Return the name of its file, in a subfolder: a digest, as UIDs name patients and may hold anything."""
        name = digest(self.study, self.series, self.sop)
        return f"{subfolder(name, GROWING)}{name}.dcm"


class NotRetrieved(Exception):  # noqa: N818
    """An answer that is of no use, in a few words without identifiers; `again`: a second try may help."""

    def __init__(self, problem: str, again: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.again = problem, again


class DicomWebServer:
    """A server with its login: a file, or the variable MEDLT_DICOMWEB_LOGIN, holds user:password or a token.

    `ca` is a PEM file of certificate authorities. A request is repeated after `wait_s`, 2 `wait_s`, 4 `wait_s` seconds.
    Use it in a `with` block, which closes its connections. Raises InputError if `url` holds a login or a query, or a
    file cannot be used.
    """

    def __init__(self, url: str, auth: Path | None = None, ca: Path | None = None, wait_s: float = 1.0) -> None:
        _check_url(url)
        self.url, self._wait_s = url.rstrip("/"), wait_s
        for library in ("dicomweb_client", "retrying", "urllib3"):  # they log URLs, and so UIDs and values of --query
            logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        self._session = requests.Session()
        self._session.auth = _authentication(_login(auth))
        self._session.hooks["response"].append(_refuse_downgrade)
        if ca is not None:
            self._session.request = partial(self._session.request, verify=_bundle(ca))  # above REQUESTS_CA_BUNDLE
        try:
            self._client = DICOMwebClient(self.url, self._session, permissive_uid=True, timeout=TIMEOUT_S)
        except ValueError:
            raise InputError(f"{self.url}: not a URL; write https://HOST/PATH") from None
        self._client.set_http_retry_params(retry=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def search(self, level: str, filters: Mapping[str, str], *uids: str) -> list[Mapping[str, Any]]:
        """Return all results of a level, "studies", "series" or "instances", below `uids`. Raises NotRetrieved."""
        results: dict[str, Mapping[str, Any]] = {}
        offset = 0
        while True:  # servers cap pages below the limit, so only an empty one is the last
            page = self._page(level, filters, uids, offset, PAGE)
            if not page and offset and offset % PAGE == 0:  # some count the limit from the first of all results
                with suppress(NotRetrieved):  # others refuse a larger one
                    page = self._page(level, filters, uids, offset, offset + PAGE)
            fresh = {value(item, UIDS[level]): item for item in page}
            if not fresh.keys() - results.keys():
                break
            results |= fresh
            offset += len(page)
        if page:
            logger.warning("the server does not page its %s; if some are missing, narrow --query", level)
        return list(results.values())

    def _page(
        self, level: str, filters: Mapping[str, str], uids: tuple[str, ...], offset: int, limit: int
    ) -> list[Any]:
        call = getattr(self._client, f"search_for_{level}")
        page = self._persist(partial(call, *uids, limit=limit, offset=offset, search_filters=dict(filters)))
        if not isinstance(page, list):
            raise NotRetrieved("not a DICOMweb answer")
        return page

    def retrieve(self, instance: Instance) -> bytes:
        """Return the file of an instance. Raises NotRetrieved."""
        path = f"studies/{instance.study}/series/{instance.series}/instances/{instance.sop}"
        return self._persist(lambda: self._body(f"{self.url}/{path}", instance.sop))

    def _body(self, url: str, sop: str) -> bytes:
        """Return the DICOM file that one request gives. Raises NotRetrieved, or an exception of requests."""
        body = bytearray()
        with self._session.get(url, headers={"Accept": AS_STORED}, stream=True, timeout=TIMEOUT_S) as answer:
            answer.raise_for_status()
            for piece in answer.iter_content(1 << 20):
                body += piece
                if len(body) > LIMIT_FILE_BYTES:
                    raise NotRetrieved("too large")
        file = _one_part(bytes(body), answer.headers.get("Content-Type", ""))
        if file[128:132] != b"DICM" or sop.encode() not in file[: 1 << 16]:
            raise NotRetrieved("another content")
        return file

    def _persist(self, call: Callable[[], _T]) -> _T:
        """Return what `call` does, after up to ATTEMPTS. Raises NotRetrieved, or InputError for login and TLS."""
        for attempt in itertools.count(1):
            try:
                return call()
            except (NotRetrieved, requests.RequestException) as error:
                problem = error if isinstance(error, NotRetrieved) else self._problem(error)
            if not problem.again or attempt == ATTEMPTS:
                raise problem
            time.sleep(self._wait_s * 2 ** (attempt - 1))
        raise AssertionError

    def _problem(self, error: requests.RequestException) -> NotRetrieved:
        """Return what an error means for one instance. Raises InputError if it means the same for all."""
        if isinstance(error, requests.exceptions.SSLError):
            raise InputError(f"{self.url}: its certificate is not trusted; give your own authority with --ca FILE")
        if isinstance(error, requests.HTTPError):
            status = error.response.status_code
            if status == 401:
                raise InputError(f"{self.url}: the login is missing or wrong; give it with --auth-file FILE")
            return NotRetrieved(f"HTTP {status}", status >= 500 or status in (408, 429))
        if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError):
            return NotRetrieved("cut short", True)
        if isinstance(error, requests.ConnectionError | requests.Timeout):
            return NotRetrieved(SILENT, True)
        return NotRetrieved("not a DICOMweb answer")


def values(item: Any, keyword: str) -> list[str]:
    """Return the values of an attribute in DICOM JSON (PS3.18 F.2); none if it is absent or malformed."""
    try:
        return [str(one).strip() for one in item[f"{tag_for_keyword(keyword):08X}"]["Value"]]
    except (KeyError, TypeError):
        return []


def value(item: Any, keyword: str) -> str:
    """Return the first value of an attribute in DICOM JSON, or ''."""
    return next(iter(values(item, keyword)), "")


def checked(uid: str) -> str:
    """Return `uid`. Raises NotRetrieved if it could change the URL that it becomes part of."""
    if not _UID.fullmatch(uid):
        raise NotRetrieved("not a UID")
    return uid


def _one_part(body: bytes, content_type: str) -> bytes:
    """Return the first part of a multipart/related body (RFC 2387), or a body that is DICOM itself."""
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_type() == "application/dicom":
        return body
    boundary = str(header.get_boundary("")).encode()
    if header.get_content_type() != "multipart/related" or not boundary:
        raise NotRetrieved("another content")
    part, closed, _ = body.partition(b"--" + boundary)[2].partition(b"\r\n--" + boundary)
    if not closed:
        raise NotRetrieved("cut short", True)
    return part.partition(b"\r\n\r\n")[2]


def _check_url(url: str) -> None:
    """Raise InputError, which does not show the URL, if it may hold a secret."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError("the URL holds a login or a query; give --auth-file FILE and --query NAME=VALUE instead")
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        logger.warning("http:// is not encrypted: radiographs and logins can be read on the way; prefer https://")


def _refuse_downgrade(answer: Any, **_: Any) -> None:
    """Raise InputError before a redirection leaves TLS."""
    if answer.is_redirect and answer.url.startswith("https:") and answer.headers["Location"].startswith("http:"):
        answer.close()
        raise InputError("the server redirects https:// to http://, which is not encrypted; check the URL")


def _login(file: Path | None) -> str:
    if file is None:
        return os.environ.get(LOGIN_VARIABLE, "").strip()
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise InputError(f"--auth-file {file}: {reason}; it holds one line, user:password or a token") from None


def _authentication(login: str) -> Callable[[Any], Any]:
    """Return what completes a request: Basic for user:password, Bearer for a token. Raises InputError, without it."""
    user, colon, password = login.partition(":")
    if login and not colon and not re.fullmatch(r"[\x21-\x7e]+", login):
        raise InputError(f"--auth-file, {LOGIN_VARIABLE}: neither user:password nor a token; write one line")

    def complete(request: Any) -> Any:
        for escaped, plain in (("%2A", "*"), ("%3F", "?"), ("%2C", ",")):  # legal (RFC 3986 3.4); Orthanc needs them
            request.url = request.url.replace(escaped, plain)
        if colon:
            return requests.auth.HTTPBasicAuth(user.encode(), password.encode())(request)
        if login:
            request.headers["Authorization"] = f"Bearer {login}"
        return request

    return complete


def _bundle(ca: Path) -> str:
    try:
        ssl.create_default_context(cafile=ca)
    except OSError:
        raise InputError(f"--ca {ca}: not a PEM file of certificates; check the path") from None
    return str(ca)
