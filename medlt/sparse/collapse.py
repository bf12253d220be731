"""Whether the code of a generation has collapsed, and which generation is the healthiest.

Three measures on the validation rows, from the columns of `medlt.sparse.code_metrics`. Each is 0 for a code that says
nothing and 1 for a perfect one:

| measure | column | 0 | 1 |
|---|---|---|---|
| sparsity | mean_max_probability | 1/V, uniform | one-hot |
| reconstruction | reconstruction_l1 | that of a decoder that returns 0, the mean of the train split | no error |
| findings | val_macro_ap | the share of positives, as by chance | 1 |

A generation is **collapsed** if one of these holds:

- (tokens_used - 1) / (V - 1) is below `ALIVE`, 0.03: fewer than 1.45 of 16 tokens are in use. Of two tokens of which
  one has 90 % of the pixels, 1.38 are in use. A collapsed code had 1.14 of 16, codes without a fault 5 or more. This
  rule has no comparison with earlier generations, because good codes may become economical: on planted findings
  tokens_used fell from 2.3 to 1.5 of 4 while reconstruction became better.
- A measure is more than `LOST`, a half, below its best among earlier generations that are not collapsed. Sampling noise
  moves validation AP by a tenth; a collapse took it from 0.998 to 0.553. A best value below `FLOOR`, 0.2, counts as
  0.2, because half of a small value is noise.
- Reconstruction or sparsity is not finite.

The **healthiest** generation is the one that has lost least in its weakest measure, as a share of the best among the
generations that are not collapsed: fusion needs all three. Of equal ones the earlier is chosen.

Private training reads no validation rows for this: there only the first rule applies, to the tokens of noise
(`medlt.sparse.private`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Row = Mapping[str, float]

ALIVE, LOST, FLOOR = 0.03, 0.5, 0.2
COLUMN = {
    "sparsity": "mean_max_probability",
    "reconstruction": "reconstruction_l1",
    "findings": "val_macro_ap",
}


def measures(row: Row, blank: Row, vocabulary: int) -> dict[str, float]:
    """Return the measures above, at least 0; NaN if unknown.

    `row` holds the code metrics, `blank` those of a code that says nothing (`code_metrics.blank_code`).
    """
    uniform, nothing, guessed = 1 / vocabulary, blank["reconstruction_l1"], blank["val_macro_ap"]
    values = {
        "sparsity": (row["mean_max_probability"] - uniform) / (1 - uniform),
        "reconstruction": 1 - row["reconstruction_l1"] / nothing if nothing > 0 else math.nan,
        "findings": (row["val_macro_ap"] - guessed) / (1 - guessed) if guessed < 1 else math.nan,
    }
    return {name: value if math.isnan(value) else max(value, 0.0) for name, value in values.items()}


def lost(row: Row, best: Row) -> dict[str, float]:
    """Return the share of its best that each known measure of `row` has lost; negative if it is better."""
    known = [name for name in COLUMN if not math.isnan(row[name])]
    return {name: (best[name] - row[name]) / max(best[name], FLOOR) for name in known}


def best_of(rows: Sequence[Row]) -> dict[str, float]:
    """Return the largest known value of each measure, 0 if there is none."""
    return {name: max([0.0, *(row[name] for row in rows if row[name] > 0)]) for name in COLUMN}


def problem(row: Row, blank: Row, vocabulary: int, previous: Sequence[Row] = ()) -> str:
    """Return why a generation is collapsed, "" if it is not.

    `previous` holds the code metrics of earlier generations that are not collapsed.
    """
    for column in ("reconstruction_l1", "mean_max_probability"):
        if not math.isfinite(row[column]):
            return f"{column} is {row[column]}"
    if dead := too_few_tokens(row["tokens_used"], vocabulary):
        return dead
    before = best_of([measures(one, blank, vocabulary) for one in previous])
    for name, share in lost(measures(row, blank, vocabulary), before).items():
        if share > LOST:
            column = COLUMN[name]
            was = (min if name == "reconstruction" else max)(one[column] for one in previous)
            return f"{column} is {row[column]:.3g}, was {was:.3g}"
    return ""


def too_few_tokens(used: float, vocabulary: int) -> str:
    """Return why so few tokens in use are a collapsed code, "" if they are not; NaN is."""
    if (used - 1) / (vocabulary - 1) >= ALIVE:
        return ""
    return f"{used:.3g} of {vocabulary} tokens in use"


def healthiest(rows: Sequence[Row], blank: Row, vocabulary: int) -> int:
    """Return the position of the healthiest of these generations, none of them collapsed."""
    values = [measures(row, blank, vocabulary) for row in rows]
    best = best_of(values)
    largest = [max(lost(one, best).values()) for one in values]
    return largest.index(min(largest))
