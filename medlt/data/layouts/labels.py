"""Applies a label specification to the labels of a table, and reports which rule changed how many labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medlt.data.columns import BOX, MASK, SIDE
from medlt.data.layouts.label_spec import LabelSpec
from medlt.data.layouts.reading import canonical
from medlt.data.layouts.tables import UNCERTAIN, never_negative
from medlt.names import did_you_mean, no_finding
from medlt.types import InputError

NOT_PATHOLOGIES = ("supportdevices",)
"""Findings, without blanks and case, that may be present in an image without a pathology."""
Rule = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class LabelReport:
    """Where the labels come from, what they mean, and what that changed.

    changed: rule -> finding -> number of labels, of the images in the manifest. contradictions: images with a positive
    no-finding label and another finding but Support Devices.
    """

    source: str
    spec: LabelSpec
    changed: Mapping[str, Mapping[str, int]]
    contradictions: int

    def summary(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold."""
        spec = self.spec.model_dump(mode="json")
        changed = {rule: dict(counts) for rule, counts in self.changed.items()}
        return {"source": self.source, **spec, "changed": changed, "contradictions": self.contradictions}

    def lines(self) -> tuple[str, ...]:
        """Return the report for a terminal."""
        spec = self.spec
        by = f", by {spec.labeler}" if spec.labeler else ""
        meaning = f"labels: {self.source}{by}; a blank means {spec.blank}, -1 means {spec.uncertain}"
        if spec.no_finding_implies_absent:
            meaning += ", No Finding means that the others but Support Devices are absent"
        counts = [f"{rule} {sum(each.values())}" for rule, each in self.changed.items()]
        clash = f"{self.contradictions} image(s) have No Finding and another finding at 1; check the table"
        changed = (f"labels changed by rule: {', '.join(counts)}",) if counts else ()
        return (meaning, *changed, *((clash,) if self.contradictions else ()))


def apply_labels(
    rows: pd.DataFrame, findings: tuple[str, ...], spec: LabelSpec, table: Path, source: str
) -> tuple[pd.DataFrame, tuple[str, ...], LabelReport]:
    """Return rows and findings by the specification, and the report; the Manifest refuses text in labels.

    Order: other names, blanks, -1, no finding, hierarchy. Raises InputError for a finding that does not exist, and for
    blanks that nothing gives a meaning to in a table that a labeler seems to have written.
    """
    rows, findings = _renamed(rows, findings, spec.alias, table)
    labels = rows[list(findings)].apply(_as_numbers)
    if "blank" not in spec.model_fields_set and (name := never_negative(labels)):
        problem = f"{name} is 1 or blank and never 0, as programs that label reports write it; what does a blank mean?"
        ways = "use --labeler chexpert-labeler, chexbert or negbio (not mentioned, so absent), or --blank unknown"
        raise InputError(f"{table}: {problem} {ways}")
    changed: dict[str, dict[str, int]] = {}
    for rule, apply in _rules(spec, findings, table):
        after = apply(labels)
        different = after.ne(labels) & ~(after.isna() & labels.isna())
        counts = {str(finding): int(count) for finding, count in different.sum().items() if count}
        changed |= {rule: counts} if counts else {}
        labels = after
    report = LabelReport(source, spec, changed, _contradictions(labels))
    return rows.drop(columns=[*findings]).join(labels), findings, report


def _renamed(
    rows: pd.DataFrame, findings: tuple[str, ...], aliases: Mapping[str, Sequence[str]], table: Path
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return rows and findings with one name for each finding, also in the columns of masks, boxes and sides."""
    names: dict[str, str] = {}
    for name, others in aliases.items():
        present = [one for one in (name, *others) if one in findings]
        if len(present) > 1:
            raise InputError(f"{table}: has both {present[0]} and {present[1]}, which --alias makes one; leave one out")
        if not present:
            close = did_you_mean(others[0], findings) or f"; the findings are {', '.join(findings)}"
            raise InputError(f"{table}: --alias {name}={others[0]}: no such finding{close}")
        names |= {present[0]: name} if present[0] != name else {}
    return rename_findings(rows, findings, names)


def rename_findings(
    rows: pd.DataFrame, findings: tuple[str, ...], names: Mapping[str, str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return rows and findings by the new `names`, with the columns of masks, boxes and sides."""
    regions = {f"{kind}{old}": f"{kind}{new}" for old, new in names.items() for kind in (MASK, BOX, SIDE)}
    return rows.rename(columns={**names, **regions}), tuple(names.get(finding, finding) for finding in findings)


def _rules(spec: LabelSpec, findings: tuple[str, ...], table: Path) -> Iterator[tuple[str, Rule]]:
    """Yield the name of each rule and its function from labels to labels, in their order."""
    if spec.blank == "negative":
        yield "blank", lambda labels: labels.fillna(0.0)
    yield "-1", lambda labels: labels.mask(labels == -1, UNCERTAIN[spec.uncertain])
    if spec.no_finding_implies_absent:
        yield "no finding", _absent_in_normal
    for child in TopologicalSorter(_reversed(spec.implies)).static_order():
        for parent in spec.implies.get(child, ()):
            if missing := [name for name in (child, parent) if name not in findings]:
                close = did_you_mean(missing[0], findings) or f"; the findings are {', '.join(findings)}"
                raise InputError(f"{table}: --implies {child}={parent}: no finding {missing[0]}{close}")
            yield f"{child}={parent}", _implied(child, parent)


def _implied(child: str, parent: str) -> Rule:
    return lambda labels: labels.assign(**{parent: labels[parent].mask(labels[child] == 1, 1.0)})


def _reversed(implies: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return parent -> children, so that a child comes first in the order of its graph."""
    children: dict[str, list[str]] = {}
    for child, parents in implies.items():
        for parent in parents:
            children.setdefault(parent, []).append(child)
    return children


def _absent_in_normal(labels: pd.DataFrame) -> pd.DataFrame:
    """Return the labels with 0 for every unknown pathology of an image whose no-finding label is 1."""
    name, others = _pathologies(labels)
    if name is None:
        return labels
    normal = labels[others].isna().mul(labels[name] == 1, axis=0)
    return labels.assign(**labels[others].mask(normal, 0.0))


def _contradictions(labels: pd.DataFrame) -> int:
    name, others = _pathologies(labels)
    return 0 if name is None else int(((labels[name] == 1) & (labels[others] == 1).any(axis=1)).sum())


def _pathologies(labels: pd.DataFrame) -> tuple[str | None, list[str]]:
    """Return the no-finding column, if there is one, and those of pathologies."""
    name = no_finding(map(str, labels.columns))
    return name, [c for c in labels if c != name and canonical(str(c)) not in NOT_PATHOLOGIES]


def _as_numbers(column: pd.Series) -> pd.Series:
    try:
        return pd.to_numeric(column).astype(np.float64)
    except (ValueError, TypeError):
        return column
