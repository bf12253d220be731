"""Pictures of a run: one rejected image for each finding and reason, and a name beside each row of the grid."""

import numpy as np
import pandas as pd

from medlt.recipes._pictures import rejected_rows
from medlt.report.grid import titles_of


def test_one_rejected_image_for_each_finding_and_first_failed_check() -> None:
    finding = {"a": "Mass", "b": "Mass", "c": "Mass", "d": "Hernia", "e": "Hernia"}
    rows = pd.DataFrame({"finding": finding})
    failed = [("best_of", "a"), ("flat", "a"), ("flat", "b"), ("best_of", "c"), ("best_of", "d"), ("flat", "kept")]
    results = pd.DataFrame(
        [(*one, False) for one in failed] + [("flat", "e", True)], columns=["check", "uid", "passed"]
    )
    assert list(rejected_rows(rows, results).index) == ["a", "c", "d"]


def test_every_row_of_the_grid_has_its_own_name() -> None:
    titles = titles_of(["Mass", "Pleural_Other", "Mass"], 32)
    first, second, third = (titles[top : top + 32] for top in (0, 34, 68))
    assert titles.shape[0] == 3 * 34 - 2
    assert (first > 0).any()
    assert np.array_equal(first, third)
    assert not np.array_equal(first, second)
    assert (titles[32:34] == 0).all()
