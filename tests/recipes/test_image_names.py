"""Names as public collections have them, with blanks, brackets and commas, from a folder to the images of a run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.manifest import Manifest
from medlt.rng import numpy_generator

CLASSES = {"Normal": 12, "Viral Pneumonia": 12, "Mass, right (old)": 6}
CONFIG = """
output_dir: run
seed: 3
size: 32
threads: 1
data: {kind: manifest, path: folder.parquet}
codec: {kind: train, width: 8, levels: 3, steps: 2, batch_size: 4}
denoiser: {width: 8, steps: 2, batch_size: 8, checkpoint_every: 2}
method: {kind: noise, num_inference_steps: 2}
targets: {tail_below: 5, head_above: 6, count: 6, max_per_finding: 2, num_candidates: 1}
checks: {folds: 2, verifier_quantile: 0.01, min_std: 0, near_copy: null}
classifier: {size: 32, steps: 2, batch_size: 8, evaluate_every: 2}
"""


def invoke(*args: object) -> None:
    done = CliRunner().invoke(app, [*map(str, args)])
    assert done.exit_code in (0, 1), done.stderr
    assert "Traceback" not in done.stderr


def test_names_with_blanks_and_commas_go_through_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, rows = numpy_generator(0, "names"), []
    for name, count in CLASSES.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for n in range(count):
            path = f"{name}/{name}-{n} (1).png"
            Image.fromarray(pixels.integers(0, 256, (40, 40), np.uint8)).save(tmp_path / "images" / path)
            rows.append({"path": path, "patient_id": path, **{one: int(one == name) for one in CLASSES}})
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.chdir(tmp_path)
    invoke("manifest", "folder", "images", "folder.parquet", "--patient", "(.+)")
    invoke("manifest", "csv", "t.csv", "csv.parquet", "--images", "images", "--findings",
           'Normal,Viral Pneumonia,"Mass, right (old)"')  # fmt: skip
    by_folder, by_table = (Manifest.read(tmp_path / f"{name}.parquet") for name in ("folder", "csv"))
    labels = by_folder.rows[list(CLASSES)]
    pd.testing.assert_frame_equal(labels.sort_index(), by_table.rows[list(CLASSES)].sort_index())
    assert labels.sum().to_dict() == CLASSES
    (tmp_path / "c.yaml").write_text(CONFIG)
    invoke("augment", "c.yaml")
    made = Manifest.read(tmp_path / "run" / "manifest.parquet")
    made.check_files()
    real = made.rows[~made.rows["synthetic"]]
    assert set(real.index) == set(by_folder.rows.index)
    plan = pd.read_parquet(tmp_path / "run" / "plan.parquet")
    assert set(plan["finding"]) == {"Mass, right (old)"}
    assert not pd.read_csv(tmp_path / "run" / "failures.csv").size
