"""Prompts from label vectors and metadata: `chest radiograph, PA view, with cardiomegaly and pleural effusion`.

A prompt names known findings and metadata only. The rest of it is the text of the template. Free text passes `scrub`
and a filter of rare words first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Literal

from torch import Tensor

from medlt.diffusion.attributes import sex_of, text_of, view_of, years
from medlt.diffusion.backbone import About
from medlt.diffusion.scrub import RareWords, scrub
from medlt.files import digest
from medlt.names import did_you_mean, means_no_finding
from medlt.types import InputError

TEMPLATE = "chest radiograph, {view} view, {sex} patient {age}, with {findings}"
FIELDS = ("view", "sex", "age", "findings", "absent", "text")


@dataclass(frozen=True)
class Prompts:
    """Function from label vectors [B,K], in the order of `findings`, to B prompts. A prompt depends on its row only.

    template: clauses separated by commas, with the fields {view}, {sex}, {age}, {findings}, {absent} and {text}.
        Unknown fields are left out, and so are clauses without a known field.
    words: phrases of findings; by default the name in lower case with spaces for underscores, and "no acute findings"
        for No_Finding (or Normal). "" leaves the finding out.
    soft_above: {findings} names the findings with this label or more (soft labels), joined "a, b and c". If there is
        none, it names No_Finding if that is present. {absent} names findings with label 0, joined "a, b or c"; the
        default template does not use it. NaN is never named.
    most: largest number of findings in {findings} and {absent}, the first in the order of `findings`; None for all.
    age: {age} in decades ("aged 40 to 49", so that more patients share a prompt) or in years. From 90 on both give
        "aged 90 or older", as de-identification requires (45 CFR 164.514(b)(2)(i)(C)). Over 120 is unknown.
    rare: a filter for {text}, which is always scrubbed.

    Raises InputError for an unknown field, a phrase for an unknown finding, or words that `scrub` would remove.
    """

    findings: tuple[str, ...]
    template: str = TEMPLATE
    words: Mapping[str, str] = field(default_factory=dict)
    soft_above: float = 0.5
    most: int | None = None
    age: Literal["decades", "years"] = "decades"
    rare: RareWords | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(self.findings))
        if strange := sorted(set(self.words) - set(self.findings)):
            close = did_you_mean(strange[0], self.findings) or "; remove it"
            raise InputError(f"prompts.words has a phrase for {strange[0]!r}, which is not a finding{close}")
        for clause in self.template.split(","):
            _check_fields(clause)
            _check_marks(re.sub(r"\{\w+\}", "word", clause))
        for finding in self.findings:
            _check_marks(self.phrase(finding))
        if not 0 < self.soft_above <= 1:
            raise InputError(f"soft_above is {self.soft_above}; give a label above 0 and at most 1")
        if self.most is not None and self.most < 1:
            raise InputError(f"most is {self.most}; give at least 1, or None for all findings")

    @property
    def digest(self) -> str:
        """Digest of all settings."""
        guard = self.rare and self.rare.digest
        settings = self.template, dict(self.words), self.soft_above, self.most, self.age
        return digest("prompts", self.findings, settings, guard)

    def phrase(self, finding: str) -> str:
        """Return the phrase of a finding."""
        plain = _spaced(finding.replace("_", " ")).lower()
        return self.words.get(finding, "no acute findings" if means_no_finding(finding) else plain)

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> list[str]:
        """Return prompts of labels [B,K] (1, 0, soft, NaN = unknown).

        about: view, sex, age and text of each row, or empty.
        """
        if labels.ndim != 2 or labels.shape[1] != len(self.findings):
            raise ValueError(f"labels {tuple(labels.shape)} for {len(self.findings)} findings; give [B,K]")
        if about and len(about) != len(labels):
            raise ValueError(f"{len(about)} metadata for {len(labels)} rows; give none, or one for each row")
        return [self._prompt(row, about[i] if about else {}) for i, row in enumerate(labels.tolist())]

    def _prompt(self, labels: Sequence[float], about: About) -> str:
        """Return the prompt of one row."""
        values = {
            "view": view_of(about),
            "sex": sex_of(about),
            "age": _aged(years(text_of(about, "age")), self.age == "decades"),
            "text": (self.rare or str)(scrub(text_of(about, "text"))),
            "findings": self._named(labels, lambda label: label >= self.soft_above, "and"),
            "absent": self._named(labels, lambda label: label == 0, "or"),
        }
        return ", ".join(filter(None, (_clause(clause, values) for clause in self.template.split(","))))

    def _named(self, labels: Sequence[float], holds: Callable[[float], bool], last: str) -> str:
        """Return the phrases of findings whose label `holds`; No_Finding only if it is present and no other is."""
        named = [finding for finding, label in zip(self.findings, labels, strict=True) if holds(label)]
        normal = [finding for finding in named if means_no_finding(finding)]
        chosen = [finding for finding in named if finding not in normal] or (normal[:1] if last == "and" else [])
        phrases = [phrase for finding in chosen if (phrase := self.phrase(finding))][: self.most]
        return f" {last} ".join(filter(None, (", ".join(phrases[:-1]), *phrases[-1:])))


def _check_fields(clause: str) -> None:
    """Raise InputError unless the clause is plain text and plain {field}s."""
    try:
        fields = [part[1:] for part in Formatter().parse(clause) if part[1] is not None]
    except ValueError:
        fields = [("", "", None)]
    if any(name not in FIELDS or form or conversion for name, form, conversion in fields):
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise InputError(f"the template's {clause.strip()!r} has another field than {known}; use these only")


def _check_marks(words: str) -> None:
    """Raise InputError for words that `scrub` would change."""
    if scrub(words) != _spaced(words):
        raise InputError(f"the words {words.strip()!r} hold an identifying or a stray mark; use other words")


def _clause(clause: str, values: Mapping[str, str]) -> str:
    """Return the clause filled in, or "" if it has fields and none is known."""
    fields = [name for _, name, _, _ in Formatter().parse(clause) if name]
    return "" if fields and not any(values[name] for name in fields) else _spaced(clause.format(**values))


def _spaced(text: str) -> str:
    """Return the text with single spaces."""
    return " ".join(text.split())


def _aged(age: float, decades: bool) -> str:
    """Return the phrase of an age in years, "" if it is NaN."""
    if math.isnan(age):
        return ""
    whole = int(age)
    if whole >= 90:
        return "aged 90 or older"
    if decades:
        return f"aged {whole // 10 * 10} to {whole // 10 * 10 + 9}"
    return f"aged {whole}" if whole else "aged under 1"
