"""The stages of a run: who draws maps, what is trained for it, and what may not be read."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from medlt.config import Fusion, LocaliseConfig, RunConfig
from medlt.data.regions import Regions
from medlt.recipes._cohort import open_cohort
from medlt.recipes._learn import learn
from medlt.recipes._localise import RunLocalisation, Stages, _sides_of, localise, outside
from medlt.recipes._models import Learnt, learn_sparse_code
from medlt.recipes._setup import RunFolder, opened
from medlt.recipes.augment import check
from medlt.sparse.embedding import SimplicialCoder
from medlt.training.runtime import silent
from medlt.types import InputError

Parts = tuple[RunFolder[RunConfig], Learnt, SimplicialCoder]


@pytest.fixture(scope="module")
def parts(
    finished: Path, tiny: Callable[[Path], RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Parts]:
    """The trained parts of the finished run, from its store."""
    out = tmp_path_factory.mktemp("localised") / "run"
    config = tiny(out).model_copy(update={"artifacts_dir": finished / "artifacts"})
    with opened(config, silent) as run:
        learnt = learn(run, open_cohort(run, check(config)))
        yield run, learnt, learn_sparse_code(run, learnt.cohort, learnt.latents, None)


def chosen(**changed: Any) -> Fusion:
    return Fusion(localise=LocaliseConfig(**({"networks": 2, "steps": 4, "code_steps": 4} | changed)))


def made(parts: Parts, **changed: Any) -> tuple[RunLocalisation, set[Path]]:
    """The localisation of an order, and the classifiers that were trained for it."""
    run, learnt, coder = parts
    before = set(run.store.folders("classifier"))
    located = localise(run, learnt, chosen(**changed), coder)
    return located, set(run.store.folders("classifier")) - before


def positives(learnt: Learnt) -> list[tuple[str, str]]:
    rows, cohort = learnt.cohort.train.rows, learnt.cohort
    names = [name for name in cohort.findings if name != cohort.manifest.no_finding]
    return [(str(uid), name) for name in names for uid in rows.index[rows[name] == 1]]


def test_given_masks_answer_for_every_positive_and_no_network_is_trained(parts: Parts) -> None:
    located, trained = made(parts)
    pairs = positives(parts[1])
    assert len(pairs) > 20
    stages = located.localisation.trust.locate(*map(list, zip(*pairs, strict=True))).stages
    assert set(stages) == {"mask"}
    assert trained == set()
    assert located.localisation.measured == {}


def test_without_masks_networks_of_their_own_make_the_maps_and_are_measured(parts: Parts) -> None:
    located, trained = made(parts, order=["image", "code"])
    assert len(trained) == 2
    assert list(located.localisation.trust.stages) == ["image", "code"]
    pairs = positives(parts[1])[:6]
    answer = located.localisation.trust.locate(*map(list, zip(*pairs, strict=True)))
    assert set(answer.stages) == {"image"}
    assert answer.maps.amax((1, 2)).tolist() == [1.0] * 6
    measured = located.localisation.measured
    assert {stage for stage, _ in measured} == {"image", "code"}
    assert all(0 <= one.low <= one.auroc <= one.high <= 1 for one in measured.values())
    again, more = made(parts, order=["image", "code"])
    assert more == set()
    assert again.digest == located.digest
    assert len({located.digest, made(parts)[0].digest, made(parts, order=["code"])[0].digest}) == 3


def test_validation_rows_choose_the_stage_of_largest_auroc(parts: Parts) -> None:
    run, learnt, coder = parts
    stages = Stages(run, learnt, chosen(order=["best"]), coder)
    assert stages.best in ("image_prior", "image", "prior", "code")
    assert list(stages.ordered()) == [stages.best]
    val = [str(uid) for uid in learnt.cohort.val.rows.index]
    names = {name: getattr(stages, name) for name in ("image_prior", "image", "prior", "code")}
    measured = stages._measure(names, val, "val")
    shared = {f for _, f in measured if all((name, f) in measured for name in names)}
    means = {name: np.mean([measured[name, f].auroc for f in sorted(shared)]) for name in names} if shared else {}
    assert stages.best == max(means, key=lambda name: means[name]) if means else stages.best == "image_prior"


def test_a_verifier_makes_no_map_of_the_rows_that_it_checks(parts: Parts) -> None:
    run, learnt, coder = parts
    stage = Stages(run, learnt, chosen(networks=0), coder).image
    assert list(stage.members) == list(learnt.verifiers.verifiers)
    assert stage.left_out == {str(uid): fold for uid, fold in learnt.verifiers.fold.items()}
    uids = [str(uid) for uid in learnt.verifiers.fold.index[:3]]
    for uid in uids:
        weights = [float(stage._weights(k, [uid])) for k in range(len(stage.members))]
        assert weights == [float(k != learnt.verifiers.fold[uid]) for k in range(len(stage.members))]


def test_the_usual_place_reads_train_rows_alone(parts: Parts) -> None:
    run, learnt, coder = parts
    prior = Stages(run, learnt, chosen(), coder).prior
    assert prior.uids == {str(uid) for uid in learnt.cohort.train.rows.index}
    train = set(learnt.cohort.train.rows["patient_id"].astype(str))
    for finding in learnt.cohort.regions.findings:
        assert set(prior.cases(finding)) <= train


def test_places_are_registered_but_for_images_coordinates_and_in_a_private_run(parts: Parts) -> None:
    run, learnt, coder = parts
    registered = Stages(run, learnt, chosen(), coder)
    rows = [str(uid) for part in (learnt.cohort.train, learnt.cohort.val) for uid in part.rows.index]
    assert registered.poses is not None
    assert list(registered.poses) == rows
    assert registered.prior.poses is registered.poses
    assert Stages(run, learnt, chosen(coordinates="image"), coder).prior.poses is None
    private = replace(learnt, private=cast(Any, object()))
    assert Stages(run, private, chosen(), coder).prior.poses is None
    digests = [made(parts, order=["prior"], coordinates=one)[0].digest for one in ("registered", "image")]
    assert len(set(digests)) == 2


def test_boxes_of_other_images_are_used_but_for_validation_and_test_patients() -> None:
    corners = np.array([[0.0, 0.0, 0.5, 0.5]])
    names = ["00000001_000.png", "00000001_007.png", "00000002_000.png", "00000003_001.png", "00000009_000.png"]
    table = Regions(boxes={"Mass": dict.fromkeys(names, corners)})
    patients = {"00000001_000": "1", "v": "2", "t": "00000003"}
    regions, owners = outside(table, patients, train={"00000001_000"})
    assert owners == {"00000001_007.png": "1", "00000009_000.png": "9"}, "in the collection; validation; test"
    assert set(regions.boxes["Mass"]) == set(owners)


def test_sides_are_read_and_other_words_refused() -> None:
    column = pd.Series(["left", " R ", None, ""], index=["a", "b", "c", "d"], name="side_Mass")
    assert _sides_of(column) == {"a": "left", "b": "right"}
    with pytest.raises(InputError, match=r"side_Mass is 'both' \(uid a\); write left or right"):
        _sides_of(pd.Series(["both"], index=["a"], name="side_Mass"))
