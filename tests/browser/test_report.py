"""The report in a browser, opened from a file: what a reader clicks and types does what it says."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from medlt.cli import app
from medlt.report.html import write_report
from medlt.report.panels import STAGES, save_panel

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
FINDINGS = ("Mass", "Nodule")
HOSTILE = "x' onerror=alert(1) \"><script>alert(2)</script>"
WIDTHS = (1280, 390, 320)
"""Of a screen, a telephone, and a screen of 1280 px at 400 % zoom."""


def stages(level: float) -> dict[str, torch.Tensor]:
    """Seven flat tiles: the tail parent black, the head parent white, the image between; the maps grow to the right."""
    grey = {"tail": 0.0, "head": 1.0, "mask": 1.0, "fused": level, "refined": level}
    ramp = torch.linspace(0, 1, 32).expand(1, 32, 32)
    return {name: torch.full((1, 32, 32), grey[name]) if name in grey else ramp for name in STAGES}


def tables(run: Path) -> None:
    """Eight images of two findings, two of them rejected; scores of three arms and four findings."""
    uids = [f"s{n}" for n in range(8)]
    kept, finding = uids[:6], [FINDINGS[n % 2] for n in range(8)]
    index = pd.Index(uids, name="uid")
    pd.DataFrame({"finding": finding, "tail_parent": "r0", "head_parent": "r1"}, index=index).to_parquet(
        run / "plan.parquet"
    )
    (run / "images").mkdir()
    for n, uid in enumerate(kept):
        Image.fromarray(np.full((32, 32), 40 * n, np.uint8)).save(run / "images" / f"{uid}.png")
    rows = pd.DataFrame({"split": "train", "synthetic": True, "finding": finding[:6]}, index=index[:6])
    rows["path"] = [f"images/{uid}.png" for uid in kept]
    rows.assign(Mass=1.0, Nodule=0.0).to_parquet(run / "manifest.parquet")
    reasons = {uid: HOSTILE if uid == "s7" else "label_consistency" for uid in uids}
    checks = [("finite", uid, 0.0, 0.0, True, "") for uid in uids]
    checks += [(reasons[uid], uid, 0.25, 0.42, uid in kept, "below") for uid in uids]
    names = ["check", "uid", "value", "limit", "passed", "reason"]
    pd.DataFrame(checks, columns=names).to_parquet(run / "checks.parquet")
    panels = {uid: save_panel(run, uid, stages(0.5), side=32) for uid in ("s0", "s6", "s7")}
    about = pd.DataFrame({"file": panels}).rename_axis("uid")
    about["finding"], about["kept"] = [finding[uids.index(uid)] for uid in panels], [uid in kept for uid in panels]
    about.to_parquet(run / "panels.parquet")
    values = {"Mass": 0.3, "Nodule": 0.1, "Hernia": float("nan"), "Effusion": 0.2, "macro": 0.25}
    scores = [(arm, 0, f, m, v) for arm in ("real", "fusion") for f, v in values.items() for m in ("AP", "AUROC", "F1")]
    pd.DataFrame(scores, columns=["arm", "seed", "finding", "metric", "value"]).to_parquet(run / "scores.parquet")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small fabricated run."""
    run = tmp_path_factory.mktemp("run")
    (run / "config.yaml").write_text("method: {kind: fusion}\ndata: {kind: phantom}\n")
    content = {"id": "0123456789abcdef", "counts": {"planned": 8, "kept": 6, "rejected": 2}}
    (run / "run.json").write_text(json.dumps(content))
    tables(run)
    return write_report(run)


def shown(page: Any) -> list[str]:
    return [str(card.get_attribute("data-uid")) for card in page.locator(".card:visible").all()]


def pixel(page: Any, x: float, y: float = 0.5) -> list[int]:
    """The colour of the viewer's image at a place, given as shares of its sides."""
    script = "(c, [x, y]) => [...c.getContext('2d').getImageData(x * (c.width - 1), y * (c.height - 1), 1, 1).data]"
    return list(page.locator("#viewer canvas").evaluate(script, [x, y])[:3])


def until(page: Any, true: str) -> None:
    """Wait until an expression holds. `wait_for_function` needs eval, which the page's policy forbids."""
    end = time.monotonic() + 30
    while not page.evaluate(true):
        assert time.monotonic() < end, true
        page.wait_for_timeout(20)


def view(page: Any, uid: str) -> None:
    page.locator(f".card[data-uid={uid}] button.open").click()
    until(page, "document.querySelector('[data-part=after]').options.length > 0")


def test_filters_show_what_matches_and_hide_empty_groups(report: Path, open_page: Open) -> None:
    page = open_page(report)
    assert len(shown(page)) == 8
    page.select_option("[name=finding]", "Nodule")
    assert shown(page) == ["s1", "s3", "s5", "s7"]
    assert page.locator("div.group:visible").count() == 1
    page.select_option("[name=state]", "rejected")
    assert shown(page) == ["s7"]
    assert page.locator(".shown").inner_text() == "1 of 8 shown"
    page.locator("form.filter [type=reset]").click()
    until(page, "document.querySelector('.shown').textContent.startsWith('8')")
    page.select_option("[name=reason]", HOSTILE)
    assert shown(page) == ["s7"]


def test_keys_walk_zoom_and_close(report: Path, open_page: Open) -> None:
    page = open_page(report)
    view(page, "s0")
    place = page.locator("[data-part=place]")
    assert place.inner_text() == "1 of 8"
    for key, expected in (("ArrowRight", "2 of 8"), ("ArrowLeft", "1 of 8"), ("ArrowLeft", "8 of 8")):
        page.keyboard.press(key)
        assert place.inner_text() == expected
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert page.locator("[data-part=zoom]").inner_text() == "156 %"
    page.keyboard.press("Shift+ArrowRight")
    assert "translate(-40px" in str(page.locator("#viewer canvas").get_attribute("style"))
    page.keyboard.press("0")
    assert page.locator("[data-part=zoom]").inner_text() == "100 %"
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    until(page, "document.activeElement.closest('.card')?.dataset.uid === 's7'")  # after the event "close"


def test_the_slider_shows_both_stages_and_a_map_colours_the_image(report: Path, open_page: Open) -> None:
    page = open_page(report)
    view(page, "s0")
    assert pixel(page, 0.9) == [0, 0, 0]  # the image itself
    page.select_option("[data-part=before]", "head parent")
    page.locator("[data-part=wipe]").fill("50")
    assert pixel(page, 0.1) == [255, 255, 255]
    assert pixel(page, 0.9) == [0, 0, 0]
    page.locator("[data-part=wipe]").fill("0")
    page.select_option("[data-part=overlay]", "tail CAM")
    red, _, blue = pixel(page, 0.95)
    assert red > 100
    assert red > blue
    assert max(pixel(page, 0.02)) < 40


def test_the_window_spreads_the_grey_levels(report: Path, open_page: Open) -> None:
    page = open_page(report)
    view(page, "s2")  # grey level 80
    assert pixel(page, 0.5) == [80, 80, 80]
    page.locator("[data-part=level]").fill("80")
    page.locator("[data-part=width]").fill("50")
    assert pixel(page, 0.5) == [128, 128, 128]
    page.locator("[data-part=level]").fill("160")
    assert pixel(page, 0.5) == [0, 0, 0]


def test_answers_are_kept_and_exported(report: Path, open_page: Open, tmp_path: Path) -> None:
    page = open_page(report)
    view(page, "s0")
    page.keyboard.press("a")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("r")
    page.keyboard.press("c")
    page.keyboard.type('rib "cut", left a+r')
    page.keyboard.press("Escape")
    page.locator(".reader").fill("AB")
    page.locator(".reader").blur()
    page.reload(wait_until="domcontentloaded")
    page.select_option("[name=answer]", "accept")
    assert shown(page) == ["s0"]
    with page.expect_download() as download:
        page.locator(".export").click()
    assert download.value.suggested_filename == "reader_answers.csv"
    download.value.save_as(tmp_path / "answers.csv")
    table = pd.read_csv(tmp_path / "answers.csv", dtype=str, keep_default_na=False)
    assert table.to_dict("list") == {
        "uid": ["s0", "s2"],
        "verdict": ["accept", "reject"],
        "comment": ["", 'rib "cut", left a+r'],
        "reader": ["AB", "AB"],
        "run": ["0123456789abcdef"] * 2,
        "finding": ["Mass", "Mass"],
    }


def drag(page: Any, start: float, end: float) -> None:
    """Drag from one place of the picture to another, given as shares of its width."""
    box = page.locator("#viewer .frame").bounding_box()
    page.mouse.move(box["x"] + start * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    for step in range(1, 5):
        share = start + (end - start) * step / 4
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    page.mouse.up()


def divider(page: Any) -> float:
    return float(page.locator("[data-part=wipe]").input_value())


def test_a_drag_on_the_image_moves_the_divider_and_pans_away_from_it_when_zoomed(report: Path, open_page: Open) -> None:
    page = open_page(report)
    view(page, "s0")
    page.select_option("[data-part=before]", "head parent")
    drag(page, 0.1, 0.6)
    assert divider(page) == pytest.approx(60, abs=1)
    assert pixel(page, 0.5) == [255, 255, 255]  # the head parent
    assert pixel(page, 0.7) == [0, 0, 0]
    page.keyboard.press("+")
    drag(page, 0.2, 0.3)
    assert divider(page) == pytest.approx(60, abs=1)
    assert "translate(0px" not in str(page.locator("#viewer canvas").get_attribute("style"))
    page.keyboard.press("0")
    drag(page, 0.5, 0.5)  # a click without a move
    assert divider(page) in (0, 50)
    page.locator("[data-part=wipe]").press("ArrowRight")
    assert divider(page) > 0


def test_a_drag_moves_nothing_where_there_is_nothing_to_compare(report: Path, open_page: Open) -> None:
    page = open_page(report)
    view(page, "s2")
    drag(page, 0.1, 0.6)
    assert divider(page) == 0


def test_a_finger_moves_the_divider(report: Path, open_page: Open) -> None:
    page = open_page(report, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    view(page, "s0")
    box = page.locator("#viewer .frame").bounding_box()
    devtools = page.context.new_cdp_session(page)
    height = box["y"] + box["height"] / 2
    for kind, share in (("touchStart", 0.2), ("touchMove", 0.3), ("touchMove", 0.5), ("touchMove", 0.7)):
        points = [{"x": box["x"] + share * box["width"], "y": height}]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert divider(page) == pytest.approx(70, abs=1)


def load(page: Any, file: Path) -> str:
    """Load a file of answers with the button, and return what the page reports."""
    page.evaluate("document.querySelector('.loaded').textContent = ''")
    with page.expect_file_chooser() as chooser:
        page.locator(".load").click()
    chooser.value.set_files(file)
    until(page, "document.querySelector('.loaded').textContent")
    return str(page.locator(".loaded").inner_text())


def answered(page: Any) -> dict[str, str]:
    cards = [card for card in page.locator(".card").all() if card.get_attribute("data-answer")]
    return {str(card.get_attribute("data-uid")): str(card.get_attribute("data-answer")) for card in cards}


def test_exported_answers_are_loaded_on_another_machine(report: Path, open_page: Open, tmp_path: Path) -> None:
    page = open_page(report)
    for uid, verdict in (("s0", "Accept"), ("s1", "Reject")):
        page.get_by_role("button", name=f"{verdict} {uid}").click()
    view(page, "s1")
    page.locator("#viewer textarea").fill('line 1\nline 2, "cut"')
    page.keyboard.press("Escape")
    page.locator(".reader").fill("AB")
    with page.expect_download() as download:
        page.locator(".export").click()
    download.value.save_as(tmp_path / "AB.csv")
    other = open_page(report)
    assert answered(other) == {}
    assert load(other, tmp_path / "AB.csv") == "2 answers loaded."
    assert answered(other) == {"s0": "accept", "s1": "reject"}
    assert other.locator(".reader").input_value() == "AB"
    with other.expect_download() as again:
        other.locator(".export").click()
    again.value.save_as(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "AB.csv").read_bytes()


def test_answers_go_from_the_page_through_a_check_into_the_next_report(
    tiny_run: Any, open_page: Open, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    page = open_page(write_report(run))
    good, bad = shown(page)[:2]
    page.get_by_role("button", name=f"Accept {good}").click()
    page.get_by_role("button", name=f"Reject {bad}").click()
    with page.expect_download() as download:
        page.locator(".export").click()
    download.value.save_as(tmp_path / "AB.csv")
    done = CliRunner().invoke(app, ["check", str(run), "--quiet", "--verdicts", str(tmp_path / "AB.csv")])
    assert done.exit_code == 1, done.stderr
    rows = pd.read_parquet(run / "check.parquet").query("check == 'readers'")
    assert rows[["uid", "reason"]].to_numpy().tolist() == [[bad, "AB: rejected"]]
    text = open_page(write_report(run)).locator("#readings").inner_text()
    assert "1 of 2 synthetic images that readers read are rejected" in text


def test_loading_replaces_no_other_answer_unasked(report: Path, open_page: Open, tmp_path: Path) -> None:
    page = open_page(report)
    page.get_by_role("button", name="Accept s0").click()
    (tmp_path / "a.csv").write_text("uid,verdict,run\ns0,reject,\ns2,reject,\nelse,reject,\ns3,reject,another\n")
    page.once("dialog", lambda dialog: dialog.dismiss())
    kept = "1 answers loaded, 1 kept as they are here, 2 are of images that this page does not show."
    assert load(page, tmp_path / "a.csv") == kept
    assert answered(page) == {"s0": "accept", "s2": "reject"}
    page.once("dialog", lambda dialog: dialog.accept())
    load(page, tmp_path / "a.csv")
    assert answered(page) == {"s0": "reject", "s2": "reject"}


def test_hostile_cells_are_text_and_a_wrong_file_changes_nothing(report: Path, open_page: Open, tmp_path: Path) -> None:
    page = open_page(report)
    before = page.locator("*").count()
    hostile = HOSTILE.replace('"', '""')
    (tmp_path / "a.csv").write_text(
        f'uid,verdict,comment,reader\ns0,accept,"{hostile}","{hostile}"\n"{hostile}",reject,,\n__proto__,reject,,\n'
    )
    assert load(page, tmp_path / "a.csv").startswith("1 answers loaded, 2 are of images")
    assert page.locator("*").count() == before
    view(page, "s0")
    assert page.locator("#viewer textarea").input_value() == HOSTILE
    page.keyboard.press("Escape")
    (tmp_path / "b.csv").write_text(f'uid,verdict\ns0,"{hostile}"\n')
    assert load(page, tmp_path / "b.csv").startswith("Nothing loaded from this file: answer 1")
    (tmp_path / "c.csv").write_bytes(bytes(range(256)))
    assert load(page, tmp_path / "c.csv") == "Nothing loaded from this file: it has no column uid."
    assert answered(page) == {"s0": "accept"}


def test_tables_sort_both_ways_with_groups_on_top(report: Path, open_page: Open) -> None:
    page = open_page(report)
    head = page.locator("#findings thead tr:nth-child(2) th").first
    first = "[...document.querySelectorAll('#findings tbody tr')].map((row) => row.cells[0].textContent)"
    head.locator("button").click()
    assert page.evaluate(first) == ["macro", "Nodule", "Effusion", "Mass", "Hernia"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert page.evaluate(first) == ["macro", "Mass", "Effusion", "Nodule", "Hernia"]
    assert head.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(report: Path, open_page: Open, width: int) -> None:
    page = open_page(report, viewport={"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    view(page, "s0")
    assert page.locator("#viewer").evaluate("(one) => one.scrollWidth <= one.clientWidth + 1")


def test_print_cuts_no_column(report: Path, open_page: Open) -> None:
    page = open_page(report, viewport={"width": 1032, "height": 700})  # A4 across, less the margins, at 96 px an inch
    page.emulate_media(media="print")
    ends = "[...document.querySelectorAll('main, .scroll, table')].map((one) => one.getBoundingClientRect().right)"
    assert max(page.evaluate(ends)) <= 1033
    assert page.pdf().startswith(b"%PDF")


BROKEN = """
[...document.querySelectorAll('.scores td.n')].flatMap((cell) => {
  const broken = [], walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) for (const word of walker.currentNode.data.matchAll(/\\S+/g)) {
    const range = document.createRange();
    range.setStart(walker.currentNode, word.index);
    range.setEnd(walker.currentNode, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map((one) => Math.round(one.top))).size > 1) broken.push(word[0]);
  }
  return broken;
})
"""


@pytest.mark.parametrize("arms", [3, 9])
def test_print_breaks_no_number_and_cuts_no_table_of_many_arms(open_page: Open, tmp_path: Path, arms: int) -> None:
    tables(tmp_path)
    (tmp_path / "config.yaml").write_text("method: {kind: fusion}\n")
    metrics = ("AP", "AUROC", "ECE", "F1", "balanced accuracy", "sensitivity")
    rows = [(f"duplicated for arm {n}", seed, name, m, 0.123 + 0.01 * seed) for n in range(arms) for seed in (0, 1)
            for name in ("macro", "Mass", "Pneumoperitoneum") for m in metrics]  # fmt: skip
    pd.DataFrame(rows, columns=["arm", "seed", "finding", "metric", "value"]).to_parquet(tmp_path / "scores.parquet")
    page = open_page(write_report(tmp_path), viewport={"width": 1032, "height": 700})
    page.emulate_media(media="print")
    ends = "[...document.querySelectorAll('main, table')].map((one) => one.getBoundingClientRect().right)"
    assert max(page.evaluate(ends)) <= 1033
    assert page.evaluate(BROKEN) == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_first_screen_shows_the_verdict_what_it_is_and_an_image(
    report: Path, open_page: Open, width: int, height: int
) -> None:
    page = open_page(report, viewport={"width": width, "height": height})
    for name in (".lead", ".about-run", ".holds", ".card img.whole >> nth=0"):
        box = page.locator(name).bounding_box()
        assert box["y"] + box["height"] <= height


def test_the_colours_follow_the_system_and_the_button(report: Path, open_page: Open) -> None:
    page = open_page(report, color_scheme="dark")
    lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    assert page.evaluate(lightness) < 150
    button = page.locator(".theme")
    button.click()
    button.click()
    assert button.inner_text() == "Colours: Light"
    assert page.evaluate(lightness) > 600
    page.reload(wait_until="domcontentloaded")
    assert page.evaluate(lightness) > 600


def test_without_javascript_every_image_and_check_can_be_read(report: Path, open_page: Open) -> None:
    page = open_page(report, java_script_enabled=False)
    assert page.locator(".card img.whole:visible").count() == 8
    assert page.locator(".scripted-only:visible").count() == 0
    page.locator(".card[data-uid=s0] summary").click()
    assert page.locator(".card[data-uid=s0] .about td:visible").count() > 0
    assert page.locator(".card[data-uid=s0] img.strip").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(report: Path, open_page: Open, axe: str, scheme: str) -> None:
    page = open_page(report, color_scheme=scheme, bypass_csp=True)
    page.evaluate("document.querySelector('details').open = true")
    page.add_script_tag(content=axe)
    for state in ("page", "viewer"):
        if state == "viewer":
            view(page, "s0")
        found = page.evaluate("axe.run()")["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in serious] == []
