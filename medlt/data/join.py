"""Joins manifests of several collections into one: patients, images and findings keep apart what is not the same.

A finding that a collection does not have is unknown in its images, not absent. The column `source` names the collection
of each image, so that a finding of one collection alone is seen (`medlt.metrics.confounding`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path

import pandas as pd
from pydantic import Field

from medlt.config import Strict
from medlt.data.columns import REQUIRED, filename_problem, is_synthetic
from medlt.data.layouts.label_spec import Aliases, Names
from medlt.data.layouts.labels import rename_findings
from medlt.data.layouts.layout_result import LayoutResult
from medlt.data.layouts.reading import canonical, few
from medlt.data.manifest import Manifest
from medlt.data.splits import patient_split
from medlt.metrics.confounding import usable
from medlt.names import did_you_mean, means_no_finding
from medlt.types import InputError

SOURCE = "source"
NAMED = ("study_id", "accession")
"""Columns whose numbers mean something in their own collection only, besides those of the patient and the image."""


class JoinOptions(Strict):
    """How collections become one."""

    names: Names = Field((), description="names of the collections; default: those of the files")
    alias: Aliases = Field(default_factory=dict, description="finding -> its other names in the collections")
    same_patients: bool = Field(False, description="equal patients and images of two collections are the same ones")
    resplit: bool = Field(False, description="split patients again, 70/10/20, stratified by finding")
    seed: int = Field(0, ge=0, description="seed of the new split")


def join_manifests(paths: Sequence[Path], options: JoinOptions) -> LayoutResult:
    """Return the rows of all manifests as one, with notes.

    uids become NAME__UID and patients NAME/PATIENT, unless the patients are the same. Raises InputError for manifests
    that cannot be read or hold synthetic images, for names or findings that do not fit, a patient in two splits, and an
    image in two collections.
    """
    names = _distinct(paths, options.names)
    sets = {name: _real(path) for name, path in zip(names, paths, strict=True)}
    spellings = one_spelling({name: one.findings for name, one in sets.items()}, options.alias)
    parts = {name: _part(name, one, spellings[name], options) for name, one in sets.items()}
    _check_meanings(parts)
    try:
        joined = reduce(Manifest.join, _same_kinds([*parts.values()]))
    except InputError as error:
        raise InputError(f"{' and '.join(map(str, paths))}: {error}{_hint(str(error))}") from None
    notes = [*_notes(spellings, options), *_unknown(parts)]
    if options.resplit:
        split = patient_split(joined.rows["patient_id"], joined.rows[[*joined.findings]], options.seed)
        joined = Manifest(joined.rows.assign(split=split), joined.findings, joined.root)
        notes.append(f"split by patient with seed {options.seed}, 70/10/20, stratified by finding")
    orphans = pd.DataFrame(columns=["kind", "uid", "path"], dtype="str")
    return LayoutResult(joined, orphans, tuple(notes))


def _hint(message: str) -> str:
    """Return what to do about patients and images that are the same in two collections."""
    if " is in splits " in message:
        return ", or split again with --resplit"
    return (
        "; leave it out of one collection, or leave --same-patients out" if " appears more than once" in message else ""
    )


def one_spelling(sets: Mapping[str, Sequence[str]], aliases: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Return the new names of findings by collection: by the aliases, then by the first collection's spelling.

    Names that differ in case, blanks and '_' are one finding, and so are all names of no finding, except where a
    collection has both. Raises InputError for an alias that joins two findings of a collection, or that none has.
    """
    renamed: dict[str, dict[str, str]] = {name: {} for name in sets}
    for finding, others in aliases.items():
        present = {name: [one for one in (finding, *others) if one in findings] for name, findings in sets.items()}
        if twice := next((name for name, some in present.items() if len(some) > 1), None):
            one, two = present[twice][:2]
            raise InputError(f"--alias {finding}={others[0]}: {twice} has both {one} and {two}; leave the option out")
        if lost := next((one for one in others if not any([one] == some for some in present.values())), None):
            known = sorted({one for findings in sets.values() for one in findings})
            close = did_you_mean(lost, known) or f"; the findings are {', '.join(known)}"
            raise InputError(f"--alias {finding}={lost}: no collection has the finding {lost}{close}")
        for name, some in present.items():
            renamed[name] |= {one: finding for one in some if one != finding}
    now = {name: {one: renamed[name].get(one, one) for one in findings} for name, findings in sets.items()}
    keys = [Counter(map(_key, names.values())) for names in now.values()]
    first: dict[str, str] = {}
    for name, names in now.items():
        for old, new in names.items():
            kept = first.setdefault(_key(new), new)
            if kept != new and not any(counts[_key(new)] > 1 for counts in keys):
                renamed[name][old] = kept
    return renamed


def _key(finding: str) -> str:
    """Return what spellings of one finding share."""
    return "no finding" if means_no_finding(finding) else canonical(finding)


def _distinct(paths: Sequence[Path], given: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each manifest. Raises InputError unless there are two manifests with names of their own."""
    if len(paths) < 2:
        raise InputError(
            "join needs at least two manifests and OUT.parquet; write medlt join A.parquet B.parquet OUT.parquet"
        )
    names = tuple(given) or tuple(path.stem for path in paths)
    if len(names) != len(paths):
        raise InputError(f"--names: {len(names)} name(s) for {len(paths)} manifests; give one each, --names A,B")
    if wrong := next((name for name in names if filename_problem(name)), None):
        raise InputError(f"--names: {wrong!r} {filename_problem(wrong)}; use letters and digits")
    if len(set(names)) < len(names):
        raise InputError(
            f"two manifests have the name {Counter(names).most_common(1)[0][0]}; give others with --names A,B"
        )
    return names


def _real(path: Path) -> Manifest:
    """Return a manifest of real images. Raises InputError for one of a run."""
    manifest = Manifest.read(path)
    if is_synthetic(manifest.rows).any():
        raise InputError(f"{path}: holds synthetic images; join the manifests of real images, and run with the result")
    return manifest


def _part(name: str, manifest: Manifest, spelling: Mapping[str, str], options: JoinOptions) -> Manifest:
    """Return the rows with the joint names of findings, and their source.

    Ids are those of this collection alone, unless patients are the same in all. A source that already separates parts
    of the collection stays, as NAME/SOURCE.
    """
    rows, findings = rename_findings(manifest.rows, manifest.findings, spelling)
    parts = rows[SOURCE].astype("str") if SOURCE in usable(rows) else None
    rows = rows.assign(**{SOURCE: name if parts is None else (f"{name}/" + parts).fillna(name)})
    if options.resplit:
        rows = rows.assign(split="train")  # of no account: the patients are split when all are there
    if not options.same_patients:
        here = [column for column in ("patient_id", *NAMED) if column in rows]
        rows = rows.assign(**{column: f"{name}/" + rows[column].astype("str") for column in here})
        rows = rows.set_axis(pd.Index([f"{name}__{uid}" for uid in rows.index], name="uid"))
    return Manifest(rows, findings, manifest.root)


def _check_meanings(parts: Mapping[str, Manifest]) -> None:
    """Raise InputError for a column that is a finding of one collection, and something else in another."""
    for name, one in parts.items():
        for other, two in parts.items():
            if clash := [finding for finding in one.findings if finding in two.rows and finding not in two.findings]:
                raise InputError(
                    f"{clash[0]} is a finding of {name}, and a column of {other} that is none; make the manifest of "
                    f"{other} again with this finding, or without the column"
                )


def _same_kinds(parts: Sequence[Manifest]) -> Iterator[Manifest]:
    """Yield the collections with text in a column that holds numbers in one of them and text in another."""
    kinds: dict[str, set[str]] = {}
    for part in parts:
        for column in part.rows.columns.difference([*REQUIRED, *part.findings]):
            if part.rows[column].notna().any():
                kinds.setdefault(column, set()).add(_kind(part.rows[column]))
    mixed = [column for column, every in kinds.items() if len(every) > 1]
    for part in parts:
        texts = {c: part.rows[c].astype("str").where(part.rows[c].notna()) for c in mixed if c in part.rows}
        yield Manifest(part.rows.assign(**texts), part.findings, part.root) if texts else part


def _kind(column: pd.Series) -> str:
    """Return whether a column holds numbers, truth values, or other values."""
    if pd.api.types.is_bool_dtype(column):
        return "bool"
    return "number" if pd.api.types.is_numeric_dtype(column) else "other"


def _notes(spellings: Mapping[str, Mapping[str, str]], options: JoinOptions) -> Iterator[str]:
    """Yield notes on other names of findings, and on whether patients may be in several collections."""
    for name, renamed in spellings.items():
        if renamed:
            words = ", ".join(f"{old} is {new}" for old, new in renamed.items())
            yield f"findings of {name} with another name: {words}"
    if not options.same_patients:
        yield "no patient is in two collections (ids are NAME/PATIENT); --same-patients if equal ids are one patient"


def _unknown(parts: Mapping[str, Manifest]) -> Iterator[str]:
    """Yield a note on the findings that a collection does not have."""
    every = dict.fromkeys(finding for part in parts.values() for finding in part.findings)
    for name, part in parts.items():
        if lacking := [finding for finding in every if finding not in part.findings]:
            yield f"unknown in all images of {name}: {few(lacking)}; --alias if it has another name there"
