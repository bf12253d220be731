"""Search, retrieve into a private folder, convert that folder.

The search (QIDO-RS, DICOM PS3.18 10.6) goes from studies to series to instances, because a server need not support
queries across levels. Instances come as stored (WADO-RS, PS3.18 10.4, transfer-syntax=*) and are kept byte for byte.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword

from medlt.csv_text import write_rows
from medlt.data.convert.journal import Journal
from medlt.data.convert.places import Places
from medlt.data.convert.run import convert
from medlt.data.convert.settings import ConversionSettings
from medlt.data.dicomweb.server import SILENT, DicomWebServer, Instance, NotRetrieved, checked, value, values
from medlt.engine import EngineChoice
from medlt.files import atomic, write_bytes
from medlt.folders import require_no_link
from medlt.names import did_you_mean
from medlt.types import InputError, Progress

THREADS = 4
MOST_SILENT = 20  # in a row without any answer: the server is gone
SERIES = ("Modality", "BodyPartExamined", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Laterality")
INSTANCE = ("SOPClassUID", "SOPInstanceUID", "InstanceNumber")
_AT_ONCE = 1000
_T = TypeVar("_T")
logger = logging.getLogger(__name__)


def convert_server(
    server: DicomWebServer,
    out: Path,
    settings: ConversionSettings,
    *,
    query: Sequence[str],
    workers: int = 0,
    engine: EngineChoice = EngineChoice(),  # noqa: B008
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Retrieve the instances that match `query`, and convert them into `out`; return the counts.

    `query` holds NAME=VALUE, where NAME is an attribute's keyword. Only the owner can read the folder of the files
    (`Places.downloads`), and a file that is there is not retrieved again. An instance that cannot be retrieved is a
    line of failures.csv, and of not_retrieved.csv in that folder. Raises InputError as `convert` does, on a bad query,
    if nothing matches, and if the server refuses the login or stops to answer.
    """
    report, filters = progress or (lambda *_: None), parse_query(query)
    if settings.dry_run:
        return _dry(search(server, filters, report))
    places = Places(out, settings.profile is not None)
    with Journal(places, settings.summary()):  # first of all: `out` may belong to another conversion
        failed = download(server, search(server, filters, report), places.downloads, report)
    missing = [instance.file for instance in failed]
    files = places.downloads / "files"
    return convert(files, out, settings, workers=workers, engine=engine, progress=progress, not_retrieved=missing)


def parse_query(query: Sequence[str]) -> dict[str, str]:
    """Return {keyword: value}; values of equal keywords are joined by commas. Raises InputError."""
    if not query:
        raise InputError("a server's archive may be large; say which part with --query, such as --query Modality=DX,CR")
    filters: dict[str, str] = {}
    for name, sign, wanted in (one.partition("=") for one in query):
        if not sign or not wanted:
            raise InputError(f"--query {name!r}: write it as NAME=VALUE, such as StudyDate=20200101-20201231")
        if tag_for_keyword(name) is None:
            close = did_you_mean(name, keyword_dict) or ";"
            raise InputError(f"--query {name}: no DICOM attribute{close} use a keyword such as StudyDate or Modality")
        if name == "ModalitiesInStudy":  # Orthanc loses results of this filter, Azure refuses it
            raise InputError(f"--query {name}: servers differ in it; use Modality={wanted}")
        filters[name] = f"{filters[name]},{wanted}" if name in filters else wanted
    return filters


def search(server: DicomWebServer, filters: Mapping[str, str], report: Progress) -> list[Instance]:
    """Return all instances that match. Raises InputError if none does, or the server does not answer."""
    above = {name: filters[name] for name in filters if name not in SERIES + INSTANCE}
    wanted = set(filters.get("Modality", "").split(",")) - {""}
    try:
        results = [item for one in _each(above) for item in server.search("studies", one)]
    except NotRetrieved as error:
        raise InputError(
            f"{server.url}: the search failed ({error.problem}); check the URL, login and --query"
        ) from None
    some = (item for item in results if _may_hold(values(item, "ModalitiesInStudy"), wanted))
    studies = list(dict.fromkeys(value(item, "StudyInstanceUID") for item in some))
    lists = _parallel(lambda study: list(_listed(server, study, filters)), studies, "studies", report)
    answered = _while_answered(server, lists, lambda some: any(one.problem == SILENT for one in some))
    instances = list(dict.fromkeys(instance for _, some in answered for instance in some))
    if not instances:
        raise InputError(f"{server.url}: nothing matches; check --query")
    return instances


def _listed(server: DicomWebServer, study: str, filters: Mapping[str, str]) -> Iterator[Instance]:
    """Yield the instances of a study that match; one with a problem stands for a series or study without a list."""
    of_series = {name: filters[name] for name in SERIES if name in filters}
    of_instances = {name: filters[name] for name in INSTANCE if name in filters}
    wanted = set(filters.get("Modality", "").split(",")) - {""}
    series = ""
    try:
        for item in (item for one in _each(of_series) for item in server.search("series", one, checked(study))):
            series, modality = value(item, "SeriesInstanceUID"), value(item, "Modality")
            if not _may_hold([modality] if modality else [], wanted):
                continue  # the server does not know this filter
            for one in _each(of_instances):
                for result in server.search("instances", one, study, checked(series)):
                    yield Instance(study, series, value(result, "SOPInstanceUID"), modality)
    except NotRetrieved as error:
        yield Instance(study, series, problem=error.problem)


def _may_hold(modalities: Sequence[str], wanted: set[str]) -> bool:
    """Return whether these modalities, which a server need not give, leave room for a wanted one."""
    return not modalities or not wanted or any(fnmatchcase(one, pattern) for one in modalities for pattern in wanted)


def download(server: DicomWebServer, instances: Sequence[Instance], folder: Path, report: Progress) -> list[Instance]:
    """Retrieve what is not there yet into folder/files; return the instances that could not be, with their problems.

    Raises InputError if the server refuses the login or does not answer any more.
    """
    files = folder / "files"
    for place in (folder.parent, folder, files):
        place.mkdir(0o700, exist_ok=True)
    require_no_link(files, (one.file for one in instances))
    for torn in files.rglob(".*.tmp*"):  # left by a killed process; the journal's lock excludes other runs
        torn.unlink()
    problems = _parallel(lambda one: _retrieve(server, one, files), instances, "instances", report)
    answered = _while_answered(server, problems, lambda problem: problem == SILENT)
    failed = [instance._replace(problem=problem) for instance, problem in answered if problem]
    _write_failed(folder / "not_retrieved.csv", failed)
    if failed:
        reasons = ", ".join(f"{problem}: {n}" for problem, n in Counter(i.problem for i in failed).most_common())
        logger.warning("%d not retrieved (%s); see %s", len(failed), reasons, folder / "not_retrieved.csv")
    return failed


def _retrieve(server: DicomWebServer, instance: Instance, files: Path) -> str:
    """Write the file of an instance, unless it is there; return '' or the problem."""
    path = files / instance.file
    if path.exists():
        return ""
    try:
        if instance.problem:
            return instance.problem
        checked(instance.sop)
        write_bytes(path, server.retrieve(instance))
    except NotRetrieved as error:
        return error.problem
    return ""


def _write_failed(path: Path, failed: list[Instance]) -> None:
    with atomic(path) as temporary, temporary.open("w", newline="") as handle:
        names = ("file", "problem", "study_uid", "series_uid", "sop_uid")
        write_rows(handle, [names, *((i.file, i.problem, i.study, i.series, i.sop) for i in failed)])


def _dry(instances: list[Instance]) -> dict[str, Any]:
    """Return the counts of a search alone, as those of a dry run of `convert`."""
    modalities = Counter(i.modality for i in instances if not i.problem)
    problems = sum(bool(i.problem) for i in instances)
    return {
        "converted": len(instances) - problems,
        "skipped": 0,
        "failed": problems,
        "reasons": {"not_retrieved": problems} if problems else {},
        "transfer_syntaxes": {},
        "modalities": dict(sorted(modalities.items())),
    }


def _parallel(
    work: Callable[[Any], _T], items: Sequence[Any], stage: str, report: Progress
) -> Iterator[tuple[Any, _T]]:
    """Yield (item, result) in order, from a few threads. An exception, or the end of the consumer, cancels the rest."""
    report(stage, 0, len(items))
    pool, done = ThreadPoolExecutor(THREADS), 0
    try:
        for at in range(0, len(items), _AT_ONCE):
            some = items[at : at + _AT_ONCE]
            for pair in zip(some, pool.map(work, some), strict=True):
                done += 1
                report(stage, done, len(items))
                yield pair
    finally:
        pool.shutdown(cancel_futures=True)


def _while_answered(
    server: DicomWebServer, results: Iterator[tuple[Any, _T]], silent: Callable[[_T], bool]
) -> Iterator[tuple[Any, _T]]:
    """Yield (item, result). Raises InputError once MOST_SILENT results in a row are silent."""
    streak = 0
    for item, result in results:
        streak = streak + 1 if silent(result) else 0
        if streak == MOST_SILENT:
            raise InputError(f"{server.url}: no answer any more; run the same command again to resume")
        yield item, result


def _each(filters: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield one set of filters per combination of codes: QIDO-RS knows lists of UIDs alone (PS3.18 8.3.4.1)."""
    values = [v.split(",") if dictionary_VR(name) == "CS" else [v] for name, v in filters.items()]
    for chosen in itertools.product(*values):
        yield dict(zip(filters, chosen, strict=True))
