"""What the labels of a table mean, as options of a layout or as a YAML file: a label specification.

The file may hold every option of its layout but paths.

```
labeler: chexpert-labeler        # what the labeler's authors mean by a blank
uncertain: unknown               # -1
alias:
  Pleural Effusion: [Effusion]   # other names of one finding
implies:
  Pneumonia: [Lung Opacity]      # the presence of the first implies that of the others
view: [frontal]
```

chexpert-labeler (Irvin et al., arXiv 1901.07031), CheXbert (Smit et al., arXiv 2004.09167) and NegBio, as MIMIC-CXR-JPG
runs it (Johnson et al., arXiv 1901.07042), write 1, 0, -1, or a blank for a finding that a report does not mention. The
authors of the first train with blanks as negative (github.com/stanfordmlgroup/chexpert-labeler, issues 9, 29 and 44).
All three set No Finding to 1 or leave it blank; 1 means that no other finding but Support Devices is present.
torchxrayvision reads CheXpert and MIMIC-CXR by the same rule.
"""

from __future__ import annotations

import csv
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from medlt.config import Strict

_NOT_MENTIONED: dict[str, Any] = {"blank": "negative", "no_finding_implies_absent": True}
PRESETS = dict.fromkeys(("chexpert-labeler", "chexbert", "negbio"), _NOT_MENTIONED)
"""Labeler -> what its labels mean, where neither the options nor the file say otherwise."""


def _listed(value: object) -> object:
    """Return ('A', 'B, right') for 'A, "B, right"', as in a line of a CSV file."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in next(csv.reader([value], skipinitialspace=True), ()) if part.strip())


def _grouped(value: object) -> object:
    """Return ['A=B', 'A=C'] as {'A': ['B', 'C']}, and {'A': 'B'} as {'A': ['B']}. Raises ValueError without an '='."""
    if isinstance(value, dict):
        return {name: [others] if isinstance(others, str) else others for name, others in value.items()}
    groups: dict[str, list[str]] = {}
    for pair in [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else ():
        name, _, other = (part.strip() for part in str(pair).partition("="))
        if not name or not other:
            raise ValueError(f"{pair!r} has no two names; write it as NAME=NAME")
        groups.setdefault(name, []).append(other)
    return groups


def _one_meaning(aliases: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Raise ValueError for an alias of two findings."""
    twice = [name for name, n in Counter(one for others in aliases.values() for one in set(others)).items() if n > 1]
    if twice:
        raise ValueError(f"{twice[0]} stands for two findings; keep one of them")
    return aliases


def _without_circle(implied: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Raise ValueError for a finding that implies itself."""
    try:
        TopologicalSorter(implied).prepare()
    except CycleError as error:
        raise ValueError(f"{' implies '.join(reversed(error.args[1]))}: a circle; remove one of them") from None
    return implied


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Aliases = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_grouped), AfterValidator(_one_meaning)]
Hierarchy = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_grouped), AfterValidator(_without_circle)]


class LabelSpec(Strict):
    """What labels mean, and which images count."""

    labeler: Literal["chexpert-labeler", "chexbert", "negbio"] | None = Field(
        None, description="program that wrote the labels from reports; sets what a blank and No Finding mean"
    )
    uncertain: Literal["unknown", "positive", "negative"] = Field("unknown", description="meaning of a label of -1")
    blank: Literal["unknown", "negative"] = Field("unknown", description="meaning of a blank label")
    no_finding_implies_absent: bool = Field(
        False, description="a positive no-finding label makes unknown findings absent, except Support Devices"
    )
    all_zero: Literal["keep", "drop", "no-finding"] | None = Field(
        None, description="action on rows with every finding at 0; None: an error if there is such a row"
    )
    alias: Aliases = Field(default_factory=dict, description="finding -> its other names in tables")
    implies: Hierarchy = Field(default_factory=dict, description="finding -> findings that are present if it is")
    view: Names = Field((), description="views to keep: frontal, lateral, unknown, or PA, AP, ...; default: all")


def policy(options: LabelSpec, labeler: str | None) -> LabelSpec:
    """Return the options, then what the labeler means; `labeler`: of the layout's own table.

    `model_fields_set` of the result holds what one of them decides.
    """
    chosen = _given(options)
    name = chosen.get("labeler", labeler)
    return LabelSpec(**(_own_defaults(options) | (PRESETS[name] | {"labeler": name} if name else {}) | chosen))


def _own_defaults(options: LabelSpec) -> dict[str, Any]:
    """Return what a layout's options say by default where a label specification says something else."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in LabelSpec.model_fields.items()}
    return {
        name: value
        for name, default in defaults.items()
        if name not in options.model_fields_set and (value := getattr(options, name)) != default
    }


def _given(spec: LabelSpec) -> dict[str, Any]:
    """Return the fields that were given a value."""
    values = {name: getattr(spec, name) for name in LabelSpec.model_fields if name in spec.model_fields_set}
    return {name: value for name, value in values.items() if value not in (None, (), {})}
