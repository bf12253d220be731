"""The gallery: each image once, with what the tables say of it, in a page that stays bounded and holds no surprise."""

import base64
import csv
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlt.csv_text import escape, unescaped
from medlt.report import gallery
from medlt.report.formatting import script
from medlt.report.gallery import in_turn
from medlt.report.html import write_report
from medlt.types import InputError

Read = Callable[..., Any]


def cards(page: Any) -> dict[str, dict[str, str]]:
    """The data of each card, by uid."""
    found = [attributes for tag, attributes in page.elements if tag == "figure" and "data-uid" in attributes]
    return {str(one["data-uid"]): {k.removeprefix("data-"): str(v) for k, v in one.items()} for one in found}


def pictures(page: Any, kind: str) -> dict[str, Image.Image]:
    """The decoded pictures of a class, by their alternative text."""
    chosen = [a for tag, a in page.elements if tag == "img" and a.get("class") == kind]
    content = {str(a["alt"]): str(a["src"]).partition(",")[2] for a in chosen}
    return {alt: Image.open(io.BytesIO(base64.b64decode(data))) for alt, data in content.items()}


@pytest.fixture
def pictured(augmented: Path) -> Path:
    """The folder with the files of its kept images: one grey level each."""
    table = pd.read_parquet(augmented / "manifest.parquet")
    made = table.index[table["synthetic"].astype(bool)]
    table["path"] = table["path"].where(~table["synthetic"].astype(bool), [f"images/{uid}.png" for uid in table.index])
    table.to_parquet(augmented / "manifest.parquet")
    (augmented / "images").mkdir()
    for level, uid in enumerate(made):
        Image.fromarray(np.full((24, 24), level, np.uint8)).save(augmented / "images" / f"{uid}.png")
    return augmented


def test_every_kept_image_and_every_panel_is_one_card_with_its_state_and_reasons(pictured: Path, page_of: Read) -> None:
    page = page_of(pictured)
    checks, shown = pd.read_parquet(pictured / "checks.parquet"), cards(page)
    made = pd.read_parquet(pictured / "manifest.parquet").query("synthetic")
    panels = pd.read_parquet(pictured / "panels.parquet")
    assert set(shown) == {*made.index, *panels.index}
    for uid, data in shown.items():
        failed = checks[(checks["uid"] == uid) & ~checks["passed"]]["check"]
        assert data["reason"].split("\n") == (list(failed) or [""])
        assert data["state"] == ("kept" if uid in made.index and panels["kept"].get(uid, True) else "rejected")
    assert "6 rejected images" in page.text("images")


def test_a_kept_image_is_embedded_pixel_by_pixel_and_a_rejected_one_is_the_end_of_its_strip(
    pictured: Path, page_of: Read
) -> None:
    page = page_of(pictured)
    for alt, picture in pictures(page, "whole").items():
        uid = next(one for one in cards(page) if one in alt)
        if (own := pictured / "images" / f"{uid}.png").is_file():
            expected = Image.open(own)
        else:
            whole = Image.open(pictured / "panels" / f"{uid}.png").convert("RGB")
            expected = whole.crop((6 * 50, 0, 7 * 50 - 2, 48))
        assert picture.tobytes() == expected.tobytes()


def test_values_and_limits_are_in_the_detail_panel_alone(augmented: Path) -> None:
    text = write_report(augmented).read_text().split('<section id="images"')[1].split("</section>")[0]
    captions = [part.split("<details>")[0] for part in text.split("<figcaption>")[1:]]
    assert not [one for one in captions if "0.000" in one or "limit" in one]
    assert "0.420" in text  # the limit of label consistency


def test_strips_without_real_images_keep_the_last_two_tiles(augmented: Path, page_of: Read) -> None:
    page = page_of(augmented, real_images=False)
    whole = Image.open(augmented / "panels" / "s0008.png").convert("RGB")
    shown = pictures(page, "strip")["fused, refined of s0008"]
    assert shown.size == (48 * 2 + 2, 48)
    assert shown.tobytes() == whole.crop((5 * 50, 0, 7 * 50 - 2, 48)).tobytes()
    assert "tail parent" not in page.text("images")


def test_a_private_run_shows_no_real_image_unless_it_is_wanted(augmented: Path, page_of: Read) -> None:
    with (augmented / "config.yaml").open("a") as file:
        file.write("privacy: {epsilon: 8}\n")
    assert {picture.width for picture in pictures(page_of(augmented), "strip").values()} == {98}
    assert {p.width for p in pictures(page_of(augmented, real_images=True), "strip").values()} == {48 * 7 + 12}


def test_a_panel_outside_the_run_folder_is_not_read(augmented: Path, tmp_path_factory, page_of: Read) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    shutil.copy(augmented / "panels" / "s0000.png", outside)
    panels = pd.read_parquet(augmented / "panels.parquet")
    panels.assign(file=str(outside)).to_parquet(augmented / "panels.parquet")
    assert not [tag for tag, _ in page_of(augmented).elements if tag == "img"]


def test_the_page_stays_bounded_and_counts_what_it_leaves_out(
    pictured: Path, page_of: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (pictured / "images" / "s0000.png").stat().st_size
    monkeypatch.setattr(gallery, "KEPT", 4)
    monkeypatch.setattr(gallery, "REJECTED", 0)
    monkeypatch.setattr(gallery, "FULL", int(2.5 * size))
    monkeypatch.setattr(gallery, "STRIPS", 0)
    monkeypatch.setattr(gallery, "THUMBNAIL", 12)
    page = page_of(pictured)
    shown, text = cards(page), page.text("images")
    assert len(shown) == 4
    assert len({data["finding"] for data in shown.values()}) == 2  # in turn
    assert "4 of 14 kept images, 0 of 6 rejected images" in text
    assert sorted(p.width for p in pictures(page, "whole").values()) == [12, 12, 24, 24]
    assert "2 of them are thumbnails" in text
    assert not pictures(page, "strip")
    assert "have no strip here" in text


def test_findings_take_turns() -> None:
    rows = [{"finding": f, "source": "", "uid": f"{f}{n}"} for f, most in (("a", 3), ("b", 1)) for n in range(most)]
    assert [row["uid"] for row in in_turn(rows)] == ["a0", "b0", "a1", "a2"]


def test_hostile_names_stay_in_their_attributes(pictured: Path, known: SimpleNamespace, page_of: Read) -> None:
    hostile = "x' onerror=alert(1) \"><script>alert(2)</script>"
    for name, column in (("plan", "finding"), ("panels", "finding"), ("manifest", "finding")):
        table = pd.read_parquet(pictured / f"{name}.parquet")
        if column in table:
            table[column] = hostile
        table.to_parquet(pictured / f"{name}.parquet")
    checks = pd.read_parquet(pictured / "checks.parquet")
    checks.assign(check=hostile, passed=False).to_parquet(pictured / "checks.parquet")
    page = page_of(pictured)
    assert {data["finding"] for data in cards(page).values()} == {hostile}
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert "alert(2)" not in (pictured / "report.html").read_text().replace("alert(2)&lt;/script&gt;", "")


def test_an_experiment_shows_the_images_of_its_sources(experiment: Path, page_of: Read) -> None:
    (experiment / "source_images").mkdir()
    files = {"a": "source_images/a.png", "b": "source_images/b.png"}
    for level, file in enumerate(files.values()):
        Image.fromarray(np.full((24, 24), level, np.uint8)).save(experiment / file)
    table = pd.DataFrame({"source": ["fusion", "coded"], "uid": list(files), "finding": "Nodule"})
    table.assign(file=list(files.values()), real=[False, True]).to_parquet(experiment / "source_images.parquet")
    assert {uid: data["source"] for uid, data in cards(page_of(experiment)).items()} == {"a": "fusion", "b": "coded"}
    assert (experiment / "report.html").read_text().count("<figure><img") == 2  # beside the verdict
    assert set(cards(page_of(experiment, real_images=False))) == {"a"}
    assert (experiment / "report.html").read_text().count("<figure><img") == 1


def node(expression: str) -> Any:
    """The value of an expression in the page's script, by Node.js."""
    if not (program := shutil.which("node")):
        pytest.skip("the script's functions are tested with Node.js, which is not installed")
    code = f"{script().text}\nconsole.log(JSON.stringify({expression}))"
    done = subprocess.run([program, "-"], input=code, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_csv_of_answers_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        ["s1", "accept", 'says "no", twice\r\nand, more', "AB", "0f", "Mass"],
        ["s2", "reject", "=1+1", "", "0f", "<b>"],
    ]
    names = ["uid", "verdict", "comment", "reader", "run", "finding"]
    (tmp_path / "a.csv").write_text(node(f"csvText({json.dumps(names)}, {json.dumps(rows)})"), newline="")
    table = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    assert list(table) == names
    assert table["comment"].tolist() == [rows[0][2], "'=1+1"]  # as a spreadsheet may hold it
    assert unescaped(table).to_numpy().tolist() == rows


@pytest.mark.parametrize("comment", ["=1+1", "-1", "-1+1", "'@a", "'tis", "\tx", "+cmd", "＝1", "-"])
def test_comments_are_escaped_in_the_page_as_they_are_in_python(comment: str) -> None:
    assert node(f"escapeCell({json.dumps(comment)})") == escape(comment)
    text = f"csvText(['uid', 'verdict', 'comment'], [['s', 'accept', {json.dumps(comment)}]])"
    assert node(f"answersIn({text})[0].comment") == comment


CELLS = ["", "a", " b ", 'x "y" z', '"', "a,b", "1\n2", "1\r\n2", "=1+1", "\ufeff", "__proto__", "é", ",", '"",""']


@pytest.mark.parametrize(("mark", "end"), [("", "\r\n"), ("\ufeff", "\n"), ("", "\r")])
def test_any_csv_of_python_is_read_as_python_reads_it(mark: str, end: str) -> None:
    rows = [["uid", "verdict", "comment"], *(["s", first, second] for first in CELLS for second in CELLS)]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    assert node(f"csvRows({json.dumps(mark + buffer.getvalue())})") == rows
    assert node(f"csvRows({json.dumps('a,b')})") == [["a", "b"]]
    assert node(f"csvRows({json.dumps('a,say x,' + chr(34) + 'b' + chr(10) + 'c')})") == [["a", "say x", '"b'], ["c"]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it has no column uid"),
        ("uid,comment\ns,x\n", "it has no column verdict"),
        ("uid,verdict\ns,accept\nt,maybe\n", "answer 2: its verdict is not accept or reject"),
    ],
)
def test_a_file_that_holds_no_answers_is_refused_with_the_reason(text: str, problem: str) -> None:
    tried = f"(() => {{ try {{ return answersIn({json.dumps(text)}) }} catch (error) {{ return error.message }} }})()"
    assert node(tried) == problem


def test_answers_are_read_by_the_names_of_columns_and_verdicts_in_any_case() -> None:
    (one,) = node(f"answersIn({json.dumps('verdict,more,uid' + chr(10) + ' Accept ,x,s1')})")
    assert one == {"uid": "s1", "verdict": "accept", "comment": "", "reader": "", "run": "", "finding": ""}


def test_cells_sort_by_their_number_and_unknown_ones_are_last() -> None:
    cells = ["0.5 ± 0.1", "–", "−0.2 [−0.3, 0]", "+1.5", "<0.001", "", "b", "A"]
    keys = node(f"{json.dumps(cells)}.map(sortKey)")
    assert keys == [0.5, None, -0.2, 1.5, 0.001, None, "b", "a"]
    for way in (1, -1):
        ordered = node(f"{json.dumps(keys)}.sort((a, b) => compareKeys(a, b, {way}))")
        numbers, words = sorted([0.5, -0.2, 1.5, 0.001])[::way], ["a", "b"][::way]
        assert ordered == [*numbers, *words, None, None]


def test_columns_of_a_head_with_spans() -> None:
    rows = [[(1, 2), (2, 1), (1, 2)], [(1, 1), (1, 1)]]  # (colSpan, rowSpan)
    given = [[{"colSpan": across, "rowSpan": down} for across, down in row] for row in rows]
    assert node(f"headerColumns({json.dumps(given)})") == [[0, 1, 3], [1, 2]]


def test_the_window_is_linear_and_clipped() -> None:
    table = list(node("windowTable(127.5, 255)").values())
    assert table == list(range(256))
    narrow = list(node("windowTable(100, 40)").values())
    expected = np.clip((np.arange(256) - 80) / 40 * 255, 0, 255)
    assert np.abs(np.array(narrow) - expected).max() <= 0.5


def test_a_map_is_added_as_its_difference_to_the_parent() -> None:
    flat = "windowTable(127.5, 255)"
    assert list(node(f"composed([10, 20, 30, 255], {flat}, [60, 20, 0, 255], [50, 20, 10, 255], 1)").values()) == [
        20, 20, 20, 255,
    ]  # fmt: skip


def test_filters_match_one_reason_of_several() -> None:
    data = {"finding": "Mass", "state": "rejected", "reason": "a\nb c"}
    for chosen, result in (
        ({"finding": ""}, True),
        ({"reason": "b c", "state": "rejected"}, True),
        ({"reason": "b"}, False),
    ):
        assert node(f"matches({json.dumps(data)}, {json.dumps(chosen)})") is result


def test_a_rejected_image_that_is_missing_is_not_left_out(pictured: Path) -> None:
    rows = pd.DataFrame({"finding": ["Mass"], "file": ["rejected_images/x.png"]}, index=pd.Index(["x"], name="uid"))
    rows.to_parquet(pictured / "rejected_images.parquet")
    with pytest.raises(InputError, match=r"rejected_images/x\.png: is missing; restore it"):
        write_report(pictured)
