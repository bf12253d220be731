"""The images of a review: pairs of both kinds that agree in finding, label, target and view, by seed and reader."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.review.reading_list import by_anatomy, choose, order
from medlt.rng import numpy_generator
from medlt.types import InputError

FINDINGS = ("Effusion", "Hernia", "Mass", "No_Finding")


def collection(n_real: int, n_made: int, seed: int = 0, views: tuple[str, ...] = ("PA", "AP")) -> list[pd.DataFrame]:
    """Real rows with labels at random, some unknown, of half as many patients; synthetic rows, each with a target."""
    rng, tables = numpy_generator(seed, "collection"), []
    for kind, n in (("r", n_real), ("s", n_made)):
        labels = (rng.random((n, 3)) < 0.4).astype(float)
        labels[rng.random((n, 3)) < 0.1] = np.nan
        rows = pd.DataFrame(labels, columns=list(FINDINGS[:3]), index=[f"{kind}{i:03d}" for i in range(n)])
        rows["No_Finding"] = (rows.fillna(1).sum(axis=1) == 0).astype(float)
        rows["view"] = rng.choice(list(views), n)
        rows["patient_id"] = [f"p{i // 2}" if kind == "r" else f"synthetic-{i}" for i in range(n)]
        tables.append(rows)
    made = tables[1]
    targets = rng.choice(["Hernia", "Mass"], n_made)
    for name in ("Hernia", "Mass"):
        made.loc[targets == name, name] = 1.0
    tables[1] = made.assign(finding=targets)
    return tables


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(1, 40))
def test_kinds_agree_in_finding_label_target_and_view(seed: int, images: int) -> None:
    real, made = collection(120, 60, seed)
    chosen = choose(real, made, FINDINGS, images, seed)
    assert chosen.index.is_unique
    parts = {kind: part for kind, part in chosen.groupby("kind")}
    assert len(parts["real"]) == len(parts["synthetic"]) <= images
    whole = pd.concat([real, made])
    for column in ("finding", "label"):
        counts = [parts[kind][column].value_counts().to_dict() for kind in ("real", "synthetic")]
        assert counts[0] == counts[1]
    views = [whole.loc[parts[kind].index, "view"].value_counts().to_dict() for kind in ("real", "synthetic")]
    assert views[0] == views[1]
    for uid, row in chosen.iterrows():
        assert whole.at[uid, row["finding"]] == row["label"]
    assert (whole.loc[chosen.index, list(FINDINGS[:3])] == 1).any(axis=1).all()  # no normal image among them
    patients = whole.loc[chosen.index, "patient_id"]
    assert patients.is_unique


def test_targets_and_labels_take_turns() -> None:
    real, made = collection(400, 200)
    chosen = choose(real, made, FINDINGS, 40, 1)
    counts = chosen.groupby(["kind", "finding", "label"]).size()
    assert len(chosen) == 80
    assert counts.loc["real"].to_dict() == {("Hernia", 0): 10, ("Hernia", 1): 10, ("Mass", 0): 10, ("Mass", 1): 10}


def test_the_seed_chooses_the_images_and_the_reader_only_their_order() -> None:
    real, made = collection(120, 60)
    first, again, other = (choose(real, made, FINDINGS, 10, seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert choose(real.iloc[::-1], made.iloc[::-1], FINDINGS, 10, 1).equals(first)
    assert set(first.index) != set(other.index)
    orders = [order(list(first.index), 1, reader) for reader in ("anna", "ben")]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_anatomy_of_a_patient_is_shown_once_whatever_the_kind() -> None:
    """Forty images are made of four train patients and of twenty whose real images may be read, too."""
    real, made = collection(60, 40)
    owners = pd.concat([real["patient_id"], pd.Series({f"t{i}": f"train-{i}" for i in range(4)})])
    parents = [f"t{i % 4}" if i % 2 else real.index[i] for i in range(40)]
    rows = by_anatomy(made.assign(head_parent=parents), owners)
    chosen = choose(real, rows, FINDINGS, 20, 0)
    shown = pd.concat([real["patient_id"], rows["patient_id"]])[list(chosen.index)]
    assert len(chosen) > 8
    assert shown.is_unique
    assert by_anatomy(made, owners).equals(made)
    alone = by_anatomy(made.assign(head_parent=None), owners)
    assert alone["patient_id"].equals(made["patient_id"])


def test_without_views_of_one_kind_views_decide_nothing() -> None:
    real, made = collection(60, 30)
    assert len(choose(real, made.assign(view=""), FINDINGS, 8, 0)) == 16
    with pytest.raises(InputError, match="nothing to compare"):
        choose(real, made.assign(view="LATERAL"), FINDINGS, 8, 0)


def test_a_soft_label_counts_from_a_half_on() -> None:
    real, made = collection(60, 30)
    soft = made.assign(Hernia=made["Hernia"] * 0.5, Mass=made["Mass"] * 0.5)
    assert choose(real, soft, FINDINGS, 8, 0).equals(choose(real, made, FINDINGS, 8, 0))
