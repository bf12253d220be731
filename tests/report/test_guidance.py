"""The section on the strength of guidance: each weight with what it does, and charts where there are enough."""

from typing import Any

import pandas as pd
import pytest

from medlt.report.formatting import environment
from medlt.report.guidance import section

NAN = float("nan")


def table(guide: int, kind: str, weights: list[float], verifier: float = 0.3) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for i, weight in enumerate(weights):
        rows.append({
            "guide": guide, "kind": kind, "strength": weight, "displacement": 0.9 * weight, "knn": 0.5 + weight,
            "outside": 0.04 + weight, "verifier": verifier - weight, "verifier_change": -weight, "verifier_se": 0.01,
            "signal": NAN, "allowed": i < 2, "chosen": i == 1,
        })  # fmt: skip
    return pd.DataFrame(rows)


def test_each_guide_has_its_lines_in_order_and_a_chart_of_three_or_more() -> None:
    whole = pd.concat([table(1, "longtail", [0.0, 0.1]), table(0, "minority", [0.2, 0.0, 0.1])])
    first, second = section(whole)
    assert (first["kind"], second["kind"]) == ("minority", "longtail")
    assert [line["strength"] for line in first["lines"]] == [0.0, 0.1, 0.2]
    assert second["outside"] is second["verifier"] is None
    guided = first["outside"].lines[1]
    assert [place.known.x for place in guided.places] == pytest.approx([0.0, 0.09, 0.18])
    assert [place.known.y for place in guided.places] == pytest.approx([0.04, 0.14, 0.24])
    assert [place.x for place in guided.places] == sorted(place.x for place in guided.places)
    known = first["verifier"].lines[1].places[2].known
    assert (known.low, known.high) == pytest.approx((0.1 - 0.02, 0.1 + 0.02))
    assert section(None) == []


def test_the_page_says_which_weight_was_used_and_which_are_beyond_the_bounds() -> None:
    page = (
        environment().get_template("guidance.html.j2").render(guidance=section(table(0, "minority", [0.0, 0.1, 0.2])))
    )
    lines = [line for line in page.splitlines() if line.startswith("<tr><td")]
    assert [("used" in line, "beyond the bounds" in line) for line in lines] == [
        (False, False), (True, False), (False, True),
    ]  # fmt: skip
    assert page.count("<svg") == 2
    assert "nan" not in page.lower().replace("finance", "")


def test_a_private_run_has_no_distances_and_no_chart_of_them() -> None:
    rows = table(0, "minority", [0.0, 0.1, 0.2]).assign(outside=NAN, knn=NAN, verifier=NAN, verifier_se=NAN)
    (only,) = section(rows)
    assert only["outside"] is only["verifier"] is None
