"""The section on what a predictor does not know: shown when it is there, escaped, without patients or lost files."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import escape
from PIL import Image

from medlt.report.html import write_report
from medlt.report.introspection import PAIRS, SHOWN, save_pair, section
from medlt.report.panels import GAP
from medlt.types import InputError

SIDE = 32


def table(hostile: str, n: int = 30) -> pd.DataFrame:
    """As `introspect` gives it; the values are v00 ... and one hostile one."""
    z = np.linspace(6, -5, n)
    rows = pd.DataFrame({"attribute": "word", "value": [f"v{i:02d}" for i in range(n)], "log_odds": z / 3, "z": z})
    rows.loc[0, "value"] = hostile
    return rows.assign(top=3, rest=9, share_top=0.5, share_rest=0.25)


def gallery(run: Path, n: int, hostile: str) -> pd.DataFrame:
    """Synthetic images are bright, their neighbours dark; the signal grows with the number."""
    bright, dark = torch.full((1, SIDE, SIDE), 0.8), torch.full((1, SIDE, SIDE), 0.2)
    uids = [f"s{i:02d}" for i in range(n)]
    rows = pd.DataFrame({"file": [save_pair(run, uid, bright, dark, SIDE) for uid in uids]}, pd.Index(uids, name="uid"))
    return rows.assign(finding=hostile, signal=np.arange(n) / 10, nearest="r0007")


@pytest.fixture
def introspected(evaluated: Path, known: SimpleNamespace) -> Path:
    """A whole run with its introspection."""
    table(known.hostile).to_parquet(evaluated / "introspection.parquet")
    gallery(evaluated, 20, known.hostile).to_parquet(evaluated / "introspection_gallery.parquet")
    return evaluated


def part(page: str) -> str:
    return page.split('<section id="introspection"')[1].split("</section>")[0]


def test_without_the_tables_there_is_no_section(evaluated: Path) -> None:
    assert "introspection" not in write_report(evaluated).read_text()
    assert json.loads((evaluated / "report.json").read_text())["introspection"] is None


def test_the_table_is_shown_the_largest_and_the_smallest_first(introspected: Path, known: SimpleNamespace) -> None:
    text = part(write_report(introspected).read_text())
    more, less = text.split("Less frequent")[0], text.split("Less frequent")[1].split("<h3>")[0]
    assert str(escape(known.hostile)) in more
    assert [f">v{i:02d}<" in more for i in (1, SHOWN - 1, SHOWN, 29)] == [True, True, False, False]
    assert [f">v{i:02d}<" in less for i in (29, 30 - SHOWN, 29 - SHOWN, 0)] == [True, True, False, False]
    assert less.index(">v29<") < less.index(">v28<")
    assert len(json.loads((introspected / "report.json").read_text())["introspection"]) == 30


def test_the_gallery_shows_the_largest_signals_beside_their_neighbours(introspected: Path) -> None:
    text = part(write_report(introspected).read_text())
    assert text.count("<img") == PAIRS
    assert text.index("s19") < text.index("s18")
    assert "s03" not in text
    assert "nearest r0007" in text
    source = text.split('src="data:image/png;base64,')[1].split('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(source))) as image:
        assert image.size == (2 * SIDE + GAP, SIDE)
        assert (np.asarray(image)[:, :SIDE] == 51).all()
        assert (np.asarray(image)[:, -SIDE:] == 204).all()


def test_without_real_images_only_the_synthetic_one_is_shown(introspected: Path) -> None:
    text = part(write_report(introspected, real_images=False).read_text())
    source = text.split('src="data:image/png;base64,')[1].split('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(source))) as image:
        assert image.size == (SIDE, SIDE)
        assert (np.asarray(image) == 204).all()
    assert "r0007" not in text


def test_nothing_breaks_out_and_no_patient_is_named(introspected: Path, known: SimpleNamespace) -> None:
    page = write_report(introspected).read_text()
    assert known.hostile not in page
    assert known.secret not in page


def test_a_file_outside_the_run_is_not_read(introspected: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("elsewhere")
    file = save_pair(outside, "x", torch.ones(1, 8, 8), torch.zeros(1, 8, 8))
    rows = pd.read_parquet(introspected / "introspection_gallery.parquet").head(3)
    rows["file"] = [str(outside / file), f"../{outside.name}/{file}", rows["file"].iloc[2]]
    rows.to_parquet(introspected / "introspection_gallery.parquet")
    text = part(write_report(introspected).read_text())
    assert text.count("<img") == 1
    assert "s02" in text


def test_no_uid_leaves_the_folder(tmp_path: Path) -> None:
    file = save_pair(tmp_path, "../../x/y", torch.ones(1, 8, 8), torch.zeros(1, 8, 8))
    assert list(tmp_path.rglob("*.png")) == [tmp_path / file]
    assert (tmp_path / file).parent == tmp_path / "introspection"


def test_one_table_alone_is_enough_and_a_missing_column_is_named(introspected: Path) -> None:
    (introspected / "introspection_gallery.parquet").unlink()
    assert "<img" not in part(write_report(introspected).read_text())
    pd.read_parquet(introspected / "introspection.parquet").drop(columns="z").to_parquet(
        introspected / "introspection.parquet"
    )
    with pytest.raises(InputError, match="has no column 'z'"):
        write_report(introspected)
    assert section(None, None, lambda name: None, True) is None
