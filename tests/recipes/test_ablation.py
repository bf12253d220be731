"""The ablation end to end on a tiny run: what varies, what is shared, what a kill leaves, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from medlt.config import RunConfig, catalogue, load_config
from medlt.config.ablation import Ablation
from medlt.recipes.ablate import main, variants
from medlt.types import InputError

Tiny = Callable[[Path], RunConfig]
VARY = {"sparse.generations": (1, 2), "method.strength": (0.1, 0.2), "method.labels": ("union",)}
TIMES = ["seconds"]


class Killed(BaseException):
    """What a kill looks like from inside."""


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, finished: Path) -> Path:
    """A finished tiny ablation, in the folder of a finished fusion run with the same settings."""
    place = tmp_path_factory.mktemp("ablated")
    shutil.copytree(finished, place / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(ask(tiny(Path("run")), VARY))
    return place / "run"


def ask(config: RunConfig, vary: dict[str, tuple[object, ...]], **more: Any) -> RunConfig:
    """The config as an ablation's."""
    return config.model_copy(update={"ablation": Ablation(vary=vary, **more)})


def read(run: Path) -> pd.DataFrame:
    """All rows but the first, which is of real images."""
    return pd.read_parquet(run / "ablation.parquet").iloc[1:].set_index(["factor", "value", "seed"])


def test_every_value_has_a_row_with_its_figures(ablated: Path) -> None:
    table = read(ablated)
    wanted = [("base", "", 0)] + [(key.split(".")[1], str(v), 0) for key, values in VARY.items() for v in values]
    wanted.append(("one_generation", "7 epochs, as 2", 0))
    assert list(table.index) == wanted
    assert (table["planned"] == table["planned"].iloc[0]).all()
    assert (table["kept"] <= table["planned"]).all()
    shares = table[["passed", "labelled", "mask_share", "tail_mass", "verifier"]]
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)
    assert (table["passed_low"] <= table["passed"]).all()
    assert (table["passed"] <= table["passed_high"]).all()
    assert {"ablation.csv", "ablation.md", "config.yaml"} <= {p.name for p in ablated.iterdir()}


def test_real_images_stand_beside(ablated: Path) -> None:
    """Positive train images of the tail; a limit just above the lowest of each finding turns that one down."""
    first = pd.read_parquet(ablated / "ablation.parquet").iloc[0]
    rows = pd.read_parquet(ablated / "stages" / "data" / "manifest.parquet").query("split == 'train'")
    tail = pd.read_parquet(next((ablated / "variants").glob("*.parquet")))["finding"].unique()
    assert first["factor"] == "real"
    assert first["planned"] == (rows[list(tail)] == 1).sum().sum()
    assert first["passed"] == pytest.approx(1 - len(tail) / first["planned"])


def test_a_value_that_is_the_bases_is_the_base(ablated: Path) -> None:
    table = read(ablated)
    same = table[table["is_base"]].drop(columns=TIMES)
    assert list(same.index) == [("base", "", 0), ("generations", "2", 0), ("strength", "0.2", 0)]
    assert len(same.drop_duplicates()) == 1
    assert len(list((ablated / "variants").glob("*.json"))) == len(table) - 2


def test_what_a_factor_does_not_touch_stays_and_what_it_does_changes(ablated: Path) -> None:
    table = read(ablated)
    base, metrics = table.loc[("base", "", 0)], ["reconstruction_l1", "probe_ap", "mean_max_probability"]
    for row in (("strength", "0.1", 0), ("labels", "union", 0)):
        assert (
            table.loc[row, [*metrics, "mask_share", "tail_mass"]] == base[[*metrics, "mask_share", "tail_mass"]]
        ).all()
        assert table.loc[row, "verifier"] != base["verifier"]
    assert (table.loc[("one_generation", "7 epochs, as 2", 0), metrics] != base[metrics]).all()


def test_all_generations_come_from_one_learning(ablated: Path) -> None:
    keys = [json.loads(path.read_text())["key"] for path in (ablated / "artifacts" / "sparse").glob("*/artifact.json")]
    made = [(key["settings"]["interaction_epochs"], key["generation"]) for key in keys]
    assert sorted(made) == [(2, 0), (2, 1), (7, 0)], "and the control from another"


def test_the_control_has_the_epochs_of_all_generations_and_takes_them_all(tiny: Tiny) -> None:
    """Counted by hand: three interactions of 5 epochs, two students of 4 + 2."""
    sparse = {"generations": 3, "imitation_epochs": 4, "adaptation_epochs": 2, "interaction_epochs": 5, "patience": 2}
    config = tiny(Path("run"))
    config = config.model_copy(update={"sparse": config.sparse.model_copy(update=sparse)})
    found = variants(config, Ablation(vary={"sparse.generations": (1, 3)}, seeds=2))
    controls = [one for one in found if one.factor == "one_generation"]
    assert [one.seed for one in controls] == [0, 1]
    for one in controls:
        chosen = one.config.sparse
        assert (chosen.generations, chosen.interaction_epochs, chosen.patience) == (1, 27, 27)
        assert chosen.batch_size == config.sparse.batch_size
        assert not one.is_base


def test_a_key_inside_a_section_of_the_method_is_varied(tiny: Tiny) -> None:
    asked = Ablation(vary={"method.localise.order": (["prior"], ["code"])})
    _, *found = variants(tiny(Path("run")), asked)
    assert [(one.factor, one.method.localise.order) for one in found] == [("order", ("prior",)), ("order", ("code",))]
    assert len({one.name for one in found}) == 2


def test_differences_are_paired_with_the_base(ablated: Path) -> None:
    table = read(ablated)
    plain = table["verifier"] - table.loc[("base", "", 0), "verifier"]
    np.testing.assert_allclose(table["verifier_difference"], plain, atol=1e-9)  # all variants have the base's plan rows


def test_a_killed_ablation_goes_on_and_makes_nothing_twice(
    ablated: Path, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "variants" and done == 3:
            raise Killed

    monkeypatch.chdir(tmp_path)
    shutil.copytree(ablated, "run")  # with all that is learnt; the variants are made anew
    Path("run/variants").rename("before")
    with pytest.raises(Killed):
        main(ask(tiny(Path("run")), VARY), stop)
    before = {p: p.stat().st_mtime_ns for p in Path("run/variants").iterdir()}
    assert len(before) == 2 * 2  # three rows, of which two are the base
    main(ask(tiny(Path("run")), VARY))
    assert {p: p.stat().st_mtime_ns for p in before} == before
    pd.testing.assert_frame_equal(read(Path("run")).drop(columns=TIMES), read(ablated).drop(columns=TIMES))


def test_more_may_be_asked_of_a_finished_one(ablated: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed, in the same folder."""
    monkeypatch.chdir(ablated.parent)
    kept = {p.name: p.read_bytes() for p in ablated.glob("ablation.*")}
    main(ask(tiny(Path("run")), {"method.strength": (0.2,)}, seeds=2))
    table = read(ablated)
    assert list(table.index.get_level_values("seed")) == [0, 1, 0, 1]
    first, second = table.loc[("base", "", 0)], table.loc[("base", "", 1)]
    assert first["verifier"] != second["verifier"]
    assert first["reconstruction_l1"] != second["reconstruction_l1"]
    for name, bytes_ in kept.items():
        (ablated / name).write_bytes(bytes_)


@pytest.mark.slow
def test_downstream_adds_the_difference_to_duplicated(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(ask(tiny(Path("run")), {"method.strength": (0.1,)}, downstream=True))
    table = read(Path("run"))
    assert (table["tail_ap_low"] <= table["tail_ap_difference"]).all()
    assert (table["tail_ap_difference"] <= table["tail_ap_high"]).all()
    assert "tail AP" in Path("run/ablation.md").read_text()


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({"method.strength": (99,)}, "ablation of method.strength: .*at most 1"),
        ({"method.kepe": (1,)}, "method.*kepe is not a known key"),
        ({"method.localise.ordre": (["code"],)}, "method.*localise.*ordre is not a known key"),
        ({"method.labels": ("all",)}, "'all'"),
        ({"sparse.vocabulary": (1,)}, "sparse.vocabulary"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_before_anything_is_made(
    tmp_path: Path, tiny: Tiny, vary: dict[str, tuple[object, ...]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        main(ask(tiny(tmp_path / "run"), vary))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "vary",
    [
        {},
        {"method.strength": ()},
        {"denoiser.steps": (1,)},
        {"strength": (1,)},
        {"method.": (1,)},
        {"method.localise.": (1,)},
    ],
)
def test_only_what_comes_after_the_shared_parts_can_be_varied(vary: dict[str, tuple[object, ...]]) -> None:
    with pytest.raises(ValidationError, match=r"varied|no values"):
        Ablation(vary=vary)


@pytest.mark.parametrize("name", ["nih14/ablation", "phantom/ablation"])
def test_the_shipped_configs_ask_for_every_open_question(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLT_DATA", "data")
    config = load_config(catalogue.path(name))
    assert config.ablation is not None
    asked = config.ablation
    assert {
        "sparse.generations", "sparse.vocabulary", "sparse.temperature", "method.area_mean", "method.neighbours",
        "method.labels", "method.pairing", "method.renoise", "method.strength",
    } <= set(asked.vary)  # fmt: skip
    assert asked.seeds >= 3
    found = variants(config, asked)
    for key in asked.vary:
        assert any(one.is_base for one in found if one.factor == key.split(".")[-1]), f"{key} lacks the base's value"
