"""What leaves a run: every table that is handed out equals the plan, and every image says what it is."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from medlt._version import __version__
from medlt.config import RunConfig, parse
from medlt.data.manifest import Manifest
from medlt.diffusion.labels import LabelUNet
from medlt.export.imagefolder import export_imagefolder
from medlt.export.webdataset import export_webdataset
from medlt.recipes.augment import _run_id
from medlt.recipes.augment import main as augment
from medlt.synthesis import METHODS
from medlt.writer import PARENTS

Tiny = Callable[[Path], RunConfig]
INTEGERS = ("seed", "slot", "candidate", "fold")
SAMPLED = {"num_inference_steps": 4}
OWN: dict[str, dict[str, Any]] = {
    "fusion": {"labels": "tail", "num_inference_steps": 10, "strength": 0.2},
    "edit": {"num_inference_steps": 10},
    "longtail": {**SAMPLED, "guidance": [{"kind": "longtail", "every": 2}]},
    "evolution": {**SAMPLED, "population": 4, "strength": [0.5]},
}
PRIVACY = {
    "epsilon": 8.0, "delta": 1e-5, "patients": 24, "findings": ["Mass", "Nodule"], "noise_multiplicity": 1,
    "grad_sample_mode": "bookkeeping", "max_physical_batch_size": 16,
}  # fmt: skip
RUNS = [
    *((name, name == "evolution") for name in METHODS),
    ("noise", True),
    pytest.param(("edit", True), marks=pytest.mark.slow),
]


def config(tiny: Tiny, out: Path, method: str, private: bool, **more: Any) -> RunConfig:
    """The tiny config without an evaluation, for this method, as DICOM too."""
    tree = tiny(out).model_dump(mode="json", exclude={"method", "checks", "privacy", "evaluation"})
    checks = {"folds": 2, "verifier_quantile": 0.01, "in_band": None, "near_copy": None}
    own = {"method": {"kind": method, **OWN.get(method, SAMPLED)}, "checks": checks, "format": "dicom"}
    return parse({**tree, **own, **({"privacy": PRIVACY} if private else {}), **more})


@pytest.fixture(scope="module", params=RUNS, ids=lambda pair: f"{pair[0]}{' private' * pair[1]}")
def handed(
    request: pytest.FixtureRequest, tiny: Tiny, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bool]:
    """A finished run of each method, and whether it is private. Those that are not share what is trained."""
    method, private = request.param
    place = tmp_path_factory.mktemp(method)
    shared: dict[str, Any] = {} if private else {"artifacts_dir": str(trained)}
    if method == "evolution":  # it takes a denoiser as it is
        LabelUNet(16, len(PRIVACY["findings"]), width=8, rescale_betas_zero_snr=True).save(place / "public")
        given = {"train": "none", "init_from": str(place / "public")}
        shared = {"codec": {"kind": "identity", "patch": 4}, "denoiser": given}
    return augment(config(tiny, place / "run", method, private, **shared)), private


def plain(value: Any) -> Any:
    """A value that compares bit for bit: floats by their bits, lists as lists, None for nothing."""
    if isinstance(value, list | tuple | np.ndarray):
        return [str(one) for one in value]
    if pd.isna(value):
        return None
    if isinstance(value, float | np.floating):
        return float(value).hex()
    return bool(value) if isinstance(value, bool | np.bool_) else value


def columns_of(table: pd.DataFrame, plan: pd.DataFrame) -> list[str]:
    """Compare every column that a table shares with the plan; returns their names."""
    shared = [name for name in plan if name in table]
    rows = plan.loc[table.index]
    for name in shared:
        assert [plain(value) for value in table[name]] == [plain(value) for value in rows[name]], name
        if name in INTEGERS:
            assert pd.api.types.is_integer_dtype(table[name]), name
    return shared


def read_csv(file: Path) -> pd.DataFrame:
    """metadata.csv as a careful reader takes it: exact floats, lists out of JSON."""
    table = pd.read_csv(file, dtype={"view": str}, index_col="uid")
    return table.assign(parents=table["parents"].map(json.loads)) if "parents" in table else table


def test_the_manifest_holds_every_column_of_the_plan(handed: tuple[Path, bool]) -> None:
    run, _ = handed
    plan = pd.read_parquet(run / "plan.parquet")
    for rows in (pd.read_parquet(run / "manifest.parquet"), Manifest.read(run / "manifest.parquet").rows):
        made = rows[rows["synthetic"].astype(bool)]
        assert len(made)
        assert columns_of(made, plan) == list(plan)


def test_metadata_equals_plan_and_manifest(handed: tuple[Path, bool]) -> None:
    run, private = handed
    plan, table = pd.read_parquet(run / "plan.parquet"), read_csv(run / "images" / "metadata.csv")
    manifest = Manifest.read(run / "manifest.parquet")
    made = manifest.rows.loc[table.index]
    parents = [name for name in PARENTS if name in plan and not private]
    assert {*columns_of(table, plan)} >= {"finding", "seed", *parents}
    assert made["synthetic"].all()
    assert table["synthetic"].all()
    for name in (*manifest.findings, "weight", "split", "run", "method"):
        assert [plain(value) for value in table[name]] == [plain(value) for value in made[name]], name
    assert table["file_name"].tolist() == [f"{uid}.png" for uid in table.index]
    assert sorted(table["file_name"]) == sorted(path.name for path in (run / "images").glob("*.png"))


def test_exports_equal_the_plan(handed: tuple[Path, bool], tmp_path: Path) -> None:
    run, private = handed
    plan = pd.read_parquet(run / "plan.parquet")
    parents = {name for name in PARENTS if name in plan and not private}
    export_imagefolder(run, tmp_path / "folder")
    table = read_csv(tmp_path / "folder" / "train" / "metadata.csv")
    assert {*columns_of(table, plan)} >= {"finding", "seed", *parents}
    assert [(tmp_path / "folder" / "train" / name).read_bytes() for name in table["file_name"]] == [
        (run / "images" / name).read_bytes() for name in table["file_name"]
    ]
    export_webdataset(run, tmp_path / "tar")
    with tarfile.open(tmp_path / "tar" / "train-000000.tar") as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    records = [json.loads(data) for name, data in members.items() if name.endswith(".json")]
    records = [{**one, "parents": json.loads(one["parents"])} if "parents" in one else one for one in records]
    assert {*columns_of(pd.DataFrame(records).set_index("uid"), plan)} >= {"finding", "seed", *parents}
    for name, data in members.items():
        if name.endswith(".png"):
            assert Image.open(io.BytesIO(data)).info["Synthetic"] == "true"


def test_real_rows_beside_them_change_no_digit(handed: tuple[Path, bool], tmp_path: Path) -> None:
    """Integers stay integers, and a column has one type in all splits, as `datasets` demands."""
    run, _ = handed
    plan = pd.read_parquet(run / "plan.parquet")
    export_imagefolder(run, tmp_path / "folder", real=True)
    tables = {
        split: pd.read_csv(tmp_path / "folder" / split / "metadata.csv", index_col="uid")
        for split in ("train", "val", "test")
    }
    table = tables["train"]
    made, real = table[table["synthetic"]], table[~table["synthetic"]]
    assert len(made) * len(real) > 0
    assert made["seed"].tolist() == plan.loc[made.index, "seed"].tolist()
    assert (set(real["run"]), set(real["seed"])) == ({"none"}, {-1})
    assert [dict(table.dtypes) for table in tables.values()] == [dict(table.dtypes)] * 3


def test_every_image_says_that_it_is_synthetic_by_which_run_and_uid(handed: tuple[Path, bool]) -> None:
    run, _ = handed
    run_id = json.loads((run / "run.json").read_text())["id"]
    assert len(run_id) == 16
    assert int(run_id, 16) >= 0
    table = read_csv(run / "images" / "metadata.csv")
    assert set(table["run"]) == {run_id}
    for file in sorted((run / "images").glob("*.png")):
        text = Image.open(file).text
        assert text.pop("Description").startswith("Synthetic image")
        assert text == {"Software": f"medlt {__version__}", "Synthetic": "true", "Run": run_id, "UID": file.stem}
        assert pydicom.dcmread(run / "dicom" / f"{file.stem}.dcm")[0x0008, 0x001C].value == "YES"


def test_no_real_uid_leaves_a_private_run_and_no_patient_leaves_any(handed: tuple[Path, bool]) -> None:
    run, private = handed
    rows = Manifest.read(run / "manifest.parquet").rows
    real = rows[~rows["synthetic"].astype(bool)]
    plan = set(re.findall(r"[\w-]+", pd.read_parquet(run / "plan.parquet").to_csv()))
    leaving = [file for pattern in ("images/*", "dicom/*", "*.md") for file in run.glob(pattern)]
    handed_out: set[str] = set()
    for file in leaving:
        data = set(re.findall(r"[\w-]+", file.read_bytes().decode("latin-1")))
        assert not data & set(real["patient_id"]), file
        handed_out |= data & set(real.index)
    assert handed_out <= plan
    assert bool(handed_out) == (not private)


def test_the_id_of_a_run_depends_on_what_it_makes_and_not_on_where(tiny: Tiny, tmp_path: Path) -> None:
    def of(rows: str = "1", models: str = "2", **changes: Any) -> str:
        tree = config(tiny, tmp_path / "a", "noise", False).model_dump(mode="json")
        run = SimpleNamespace(config=parse({**tree, **changes}))
        cohort = SimpleNamespace(manifest=SimpleNamespace(digest=lambda: rows))
        return _run_id(run, cohort, SimpleNamespace(models={"denoiser": models}))  # type: ignore[arg-type]

    codec = {"kind": "folder", "path": str(tmp_path / "codec")}
    assert of() == of(output_dir=str(tmp_path / "b"), artifacts_dir=str(tmp_path / "c"), threads=2, device="cuda")
    assert of(codec=codec) == of(codec={**codec, "path": str(tmp_path / "moved")}) != of()
    assert len({of(), of(rows="3"), of(models="3"), of(seed=4), of(method={"kind": "minority"})}) == 5
    assert of(privacy=PRIVACY) == of(privacy=PRIVACY, rows="3") != of(privacy=PRIVACY, models="3")
