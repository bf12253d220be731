"""A report without real images: none of their pixels, no uid of a parent, and the first lines say so."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from medlt import config as configs
from medlt.cli import app
from medlt.report import heading
from medlt.report.html import write_report
from medlt.report.introspection import save_pair
from medlt.report.panels import STAGES, save_panel

Read = Callable[..., Any]
SIDE, GAP = 48, 2
REAL = STAGES[:5]
"""Stages that show a real image: both parents, and maps and mask over them."""


def tiles(picture: Image.Image) -> list[bytes]:
    """The square tiles of a picture, as bytes."""
    pixels = np.asarray(picture.convert("RGB"))
    side = len(pixels)
    return [pixels[:, x : x + side].tobytes() for x in range(0, pixels.shape[1] - side + 1, side + GAP)]


def shown(page: Path) -> set[bytes]:
    """Every tile of every picture in a page."""
    content = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page.read_text())
    return {tile for one in content for tile in tiles(Image.open(io.BytesIO(base64.b64decode(one))))}


def real_tiles(run: Path) -> Iterator[bytes]:
    for file in sorted((run / "panels").glob("*.png")):
        yield from tiles(Image.open(file))[: len(REAL)]
    for file in sorted((run / "introspection").glob("*.png")):
        yield tiles(Image.open(file))[0]


@pytest.fixture
def run(augmented: Path) -> Path:
    """A run on radiographs of patients with panels, real neighbours, and a rejected copy of its parent."""
    data = {"kind": "manifest", "path": "m.parquet"}
    tree = {"method": "fusion", "size": 48, "data": data, "codec": {"kind": "train"}, "output_dir": str(augmented)}
    (augmented / "config.yaml").write_text(configs.dump(configs.parse(tree)))
    plan, rows = pd.read_parquet(augmented / "plan.parquet"), pd.read_parquet(augmented / "manifest.parquet")
    rows.assign(finding=plan["finding"].reindex(rows.index)).to_parquet(augmented / "manifest.parquet")
    uids = ["s0000", "s0001"]
    noise = torch.rand(2, 2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    files = [save_pair(augmented, uid, *pair, side=SIDE) for uid, pair in zip(uids, noise, strict=True)]
    table = {"finding": "Mass", "signal": [2.0, 1.0], "nearest": ["r0007", "r0008"], "file": files}
    pd.DataFrame(table, index=pd.Index(uids, name="uid")).to_parquet(augmented / "introspection_gallery.parquet")
    panels = pd.read_parquet(augmented / "panels.parquet")
    copy = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))[0]
    panels.loc["s0019"] = {
        "file": save_panel(augmented, "s0019", dict.fromkeys(STAGES, copy), side=SIDE), "kept": False,
        "finding": "Pneumothorax",
    }  # fmt: skip
    panels.to_parquet(augmented / "panels.parquet")
    return augmented


def test_a_page_without_real_images_holds_none_of_their_pixels_and_no_uid_of_a_parent(run: Path) -> None:
    real = set(real_tiles(run))
    assert real <= shown(write_report(run, real_images=True))
    page = write_report(run, real_images=False)
    assert shown(page)
    assert not shown(page) & real
    text = page.read_text()
    assert not [uid for uid in ("r0000", "r0001", "r0007", "r0008", "r9999") if uid in text]
    assert 'data-uid="s0019"' not in text  # the copy of its parent
    assert "1 that copies a real image is left out" in text


@pytest.mark.parametrize(("option", "line"), [("--real-images", heading.REAL), ("--no-real-images", heading.NONE)])
def test_one_line_says_whether_the_page_holds_real_images(run: Path, page_of: Read, option: str, line: str) -> None:
    done = CliRunner().invoke(app, ["report", str(run), option, "--quiet"])
    assert done.exit_code == 0, done.output
    html = (run / "report.html").read_text()
    assert html.split('class="holds">')[1].split("</p>")[0] == line
    assert json.loads((run / "report.json").read_text())["real_images"] == (option == "--real-images")


def test_a_page_written_without_real_images_stays_without_them_until_they_are_wanted(run: Path) -> None:
    assert heading.REAL in write_report(run).read_text()
    write_report(run, real_images=False)
    assert heading.NONE in write_report(run).read_text()
    write_report(run, real_images=True)
    assert heading.REAL in write_report(run).read_text()
    (run / "report.json").write_text("{")
    assert heading.REAL in write_report(run).read_text()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("privacy: null", "privacy: {epsilon: 8}"))
    assert heading.NONE in write_report(run).read_text()


def test_images_drawn_by_a_program_show_no_patient(run: Path) -> None:
    (run / "config.yaml").write_text("method: {kind: fusion}\ndata: {kind: phantom}\n")
    assert heading.DRAWN in write_report(run).read_text()
    assert heading.NONE in write_report(run, real_images=False).read_text()


def test_a_page_without_a_picture_of_a_real_image_says_so(run: Path) -> None:
    for name in ("panels", "introspection_gallery"):
        (run / f"{name}.parquet").unlink()
    assert heading.NONE in write_report(run, real_images=True).read_text()


def test_the_top_says_what_the_run_is_by_its_tables(run: Path, page_of: Read) -> None:
    rows = pd.read_parquet(run / "manifest.parquet")
    made = rows[rows["synthetic"].astype(bool)]
    train = rows[~rows["synthetic"].astype(bool) & (rows["split"] == "train")]
    text = page_of(run).text("")
    assert f"{len(made)} synthetic images of 48 × 48 px, by method fusion: " in text
    for finding, count in made["finding"].value_counts().items():
        assert f"{str(finding).replace('_', ' ')} {count}" in text
    assert f"The train split has {len(train)} real images of {train['patient_id'].nunique()} patients." in text
    config = (run / "config.yaml").read_text()
    assert "image_size: null" in config
    (run / "config.yaml").write_text(config.replace("image_size: null", "image_size: 96"))
    assert "synthetic images of 96 × 96 px" in page_of(run).text("")
    (run / "manifest.parquet").unlink()
    assert "synthetic images of" not in page_of(run).text("")
