"""The review page in a browser: what a reader types and clicks is what is saved, and nothing is lost."""

import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medlt.review.answers import QUESTIONS, AnswerFile, read_answers, reader_file
from medlt.review.server import Reading, ReviewServer

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
GREYS = (40, 80, 120, 160)
"""Grey level of each image."""
WIDTHS = (1280, 390, 320)
"""Of a screen, a telephone, and a screen of 1280 px at 400 % zoom."""


def flat_images(folder: Path) -> Reading:
    """Four flat images, the third with a long name of a finding."""
    images = torch.tensor(GREYS, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 64, 64).contiguous()
    findings = ["Mass", "Hernia", "Calcification_of_the_Aorta", "Mass"]
    answers = AnswerFile.open(reader_file(folder, "anna"))
    return Reading([f"u{i}" for i in range(4)], findings, images, answers, 3, tuple(QUESTIONS))


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a review of four flat images."""
    server = ReviewServer(flat_images(tmp_path))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield server.address
    server.stop()
    thread.join(10)


def wait_for(page: Any, place: str, text: str) -> None:
    """Wait for a text; `wait_for_function` needs eval, which the page's policy forbids."""
    page.locator(place, has_text=re.compile(text)).wait_for()


def ready(page: Any, number: int = 1) -> Any:
    """Wait until an image is there; before that, the page takes no answer."""
    wait_for(page, "#place", f"^image {number} ")
    page.evaluate("document.querySelector('#frame img').decode()")
    return page


def saved(page: Any) -> None:
    """Wait until every answer is saved."""
    wait_for(page, "#saved", "^saved$")


def pressed(page: Any) -> list[str]:
    return [str(one.get_attribute("data-value")) for one in page.locator("fieldset [aria-pressed=true]").all()]


def grey(page: Any) -> int:
    """The grey level in the middle of the screen's image, as it is shown."""
    box = page.locator("#frame").bounding_box()
    clip = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "width": 1, "height": 1}
    return int(np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("L"))[0, 0])


def written(folder: Path) -> dict[str, list[str]]:
    answers = read_answers(folder / "review" / "anna.csv")
    return {uid: [one.origin, one.plausibility, one.presence, one.comment] for (_, uid), one in answers.items()}


def test_keys_answer_walk_and_undo(address: str, open_page: Open, tmp_path: Path) -> None:
    page = ready(open_page(address))
    page.keyboard.type("rpy")
    page.keyboard.press("Enter")
    ready(page, 2).keyboard.type("si")
    page.keyboard.press("ArrowRight")
    ready(page, 3).keyboard.type("snu")
    page.keyboard.type("z")  # absent again
    page.keyboard.press("ArrowLeft")
    ready(page, 2)
    assert pressed(page) == ["synthetic", "implausible"]
    page.keyboard.type("i")  # taken back
    page.keyboard.type("c")
    page.keyboard.type("ribs, left: r+s")
    page.keyboard.press("Escape")
    saved(page)
    assert written(tmp_path) == {
        "u0": ["real", "plausible", "present", ""],
        "u1": ["synthetic", "", "", "ribs, left: r+s"],
        "u2": ["synthetic", "", "absent", ""],
    }
    page.keyboard.type("o")
    assert page.locator("#place").inner_text() == "image 3 of 4, 1 answered"
    assert page.locator("legend").all_inner_texts()[-1] == "Calcification of the Aorta: present?"


def test_a_key_that_is_held_down_counts_once(address: str, open_page: Open) -> None:
    page = ready(open_page(address))
    for key in ("r", "Enter"):
        page.keyboard.down(key)
        page.keyboard.down(key)
        page.keyboard.up(key)
    assert page.locator("#place").inner_text() == "image 2 of 4, 0 answered"
    page.keyboard.press("ArrowLeft")
    assert pressed(page) == ["real"]


def test_tab_and_enter_alone_are_enough(address: str, open_page: Open, tmp_path: Path) -> None:
    page = ready(open_page(address))

    def tab_to(text: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent").startswith(text):
                return
        pytest.fail(f"no {text} in the order of tabs")

    for value in ("synthetic", "plausible", "unsure"):
        tab_to(value)
        page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # goes on, and takes nothing back
    ready(page, 2)
    saved(page)
    assert written(tmp_path) == {"u0": ["synthetic", "plausible", "unsure", ""]}
    tab_to("Stop reading")
    page.keyboard.press("Enter")
    wait_for(page, "#saved", "^Stopped")


def test_enter_goes_on_after_a_click(address: str, open_page: Open) -> None:
    page = ready(open_page(address))
    page.get_by_role("button", name="real R").click()
    page.keyboard.press("Enter")
    ready(page, 2)
    page.get_by_role("button", name="Next Enter").click()
    ready(page, 3)
    page.get_by_role("button", name="Back").click()
    ready(page, 2)
    page.keyboard.press("Enter")  # not Back again
    ready(page, 3)


def test_window_level_and_invert_show_the_grey_levels_that_they_say(address: str, open_page: Open) -> None:
    page = ready(open_page(address))
    assert grey(page) == GREYS[0]
    page.keyboard.type("x")
    assert grey(page) == 255 - GREYS[0]
    page.keyboard.type("x")
    box = page.locator("#frame").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down(button="right")
    page.mouse.move(middle[0] - 55, middle[1] - 67)
    page.mouse.up(button="right")
    level, width = 127.5 - 67, 255 - 55
    assert page.locator("#view").inner_text() == "zoom 100 %, window 200, level 61"
    assert abs(grey(page) - ((GREYS[0] - level) / width + 0.5) * 255) <= 1
    page.keyboard.type("b")
    brighter = grey(page)
    assert abs(brighter - ((GREYS[0] - level + 10) / width + 0.5) * 255) <= 1
    page.keyboard.type("h")
    assert grey(page) < brighter  # below the middle of the window, more contrast is darker
    page.keyboard.type("0")
    assert grey(page) == GREYS[0]


def test_the_wheel_zooms_at_the_pointer_and_keys_move(address: str, open_page: Open) -> None:
    page = ready(open_page(address))
    image = page.locator("#frame img")
    before = image.bounding_box()
    x, y = before["x"] + 0.25 * before["width"], before["y"] + 0.25 * before["height"]
    page.mouse.move(x, y)
    page.mouse.wheel(0, -100)
    wait_for(page, "#view", "^zoom 115 %")
    after = image.bounding_box()
    assert abs((x - after["x"]) / after["width"] - 0.25) < 0.01
    assert abs((y - after["y"]) / after["height"] - 0.25) < 0.01
    page.keyboard.press("+")
    at = image.bounding_box()["x"]
    page.keyboard.press("Shift+ArrowLeft")
    assert image.bounding_box()["x"] == pytest.approx(at + 40)
    page.keyboard.press("Enter")
    ready(page, 2)
    assert page.locator("#view").inner_text() == "zoom 100 %, window 255, level 128"  # of every image anew


def test_the_image_fills_the_height_of_the_screen(address: str, open_page: Open) -> None:
    page = ready(open_page(address))
    assert page.locator("#frame img").bounding_box()["height"] == 900
    assert page.evaluate("document.documentElement.scrollHeight") == 900
    assert page.locator("#finish").bounding_box()["y"] < 900


def test_a_panel_names_every_key(address: str, open_page: Open) -> None:
    page = ready(open_page(address))
    page.keyboard.press("?")
    named = set(page.locator("#keys kbd").all_inner_texts())
    script = "[...Object.keys(STEPS), ...Object.keys(VIEWS), ...questions.flatMap((one) => Object.keys(WORDS[one][1]))]"
    signs = {"ArrowLeft": "←", "ArrowRight": "→", "=": "+"}
    assert {signs.get(key, key if len(key) > 1 else key.upper()) for key in page.evaluate(script)} <= named
    page.keyboard.type("r")
    page.keyboard.press("?")
    assert not page.locator("#keys").is_visible()
    assert pressed(page) == []


def test_a_reload_stays_and_a_new_window_goes_on(address: str, open_page: Open, tmp_path: Path) -> None:
    page = ready(open_page(address))
    page.keyboard.type("rpy")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    ready(page, 3)
    page.keyboard.type("cunfinished")
    page.reload()  # while the comment is being typed
    ready(page, 3)
    assert page.locator("#comment").input_value() == "unfinished"
    other = ready(open_page(address), 2)
    assert other.locator("#place").inner_text() == "image 2 of 4, 1 answered"
    assert written(tmp_path)["u2"] == ["", "", "", "unfinished"]


SERVED = """
import runpy, sys
from pathlib import Path
known = runpy.run_path(sys.argv[1])
server = known["ReviewServer"](known["flat_images"](Path(sys.argv[2])))
print(server.address, flush=True)
server.serve()
"""


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and the address of its page."""
    command = [sys.executable, "-c", SERVED, __file__, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_a_killed_server_loses_no_answer_that_the_page_shows(browser: Any, open_page: Open, tmp_path: Path) -> None:
    with served(tmp_path) as (process, address), browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        ready(page).keyboard.type("rp")
        saved(page)
        process.kill()
        process.wait(10)
        page.keyboard.type("n")
        page.wait_for_selector("#problem:visible")
        assert "Start the same command again" in page.locator("#problem").inner_text()
        assert pressed(page) == ["real", "plausible"]  # the answer that was not saved is not shown as one
    with served(tmp_path) as (_, address):
        page = ready(open_page(address))
        assert pressed(page) == ["real", "plausible"]
        page.keyboard.type("n")
        saved(page)
    assert written(tmp_path) == {"u0": ["real", "plausible", "absent", ""]}


def test_a_file_that_another_program_changed_is_said_on_the_page(browser: Any, address: str, tmp_path: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        ready(page).keyboard.type("r")
        saved(page)
        file = tmp_path / "review" / "anna.csv"
        file.write_text(file.read_text() + "9,mine,Mass,real,,,\n")
        page.keyboard.type("p")
        page.wait_for_selector("#problem:visible")
        assert "changed by another program" in page.locator("#problem").inner_text()
        assert pressed(page) == ["real"]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(address: str, open_page: Open, width: int) -> None:
    page = ready(open_page(address, viewport={"width": width, "height": 700}))
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # a long name of a finding
    ready(page, 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("?")
    assert page.locator("#keys").evaluate("(one) => one.scrollWidth <= one.clientWidth + 1")
    box = page.locator("#keys").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(address: str, open_page: Open, axe: str, scheme: str, width: int) -> None:
    page = open_page(address, color_scheme=scheme, bypass_csp=True, viewport={"width": width, "height": 800})
    ready(page).keyboard.type("rpyc")
    page.keyboard.press("Escape")
    page.add_script_tag(content=axe)
    for state in ("page", "keys"):
        if state == "keys":
            page.keyboard.press("?")
        violations = page.evaluate("axe.run()")["violations"]
        serious = [one for one in violations if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in serious] == []


def test_what_the_page_holds_does_not_name_the_kind(address: str, open_page: Open) -> None:
    page = ready(open_page(address))
    script = "[document.documentElement.outerHTML, JSON.stringify(items), location.href]"
    texts = " ".join(page.evaluate(script))
    assert not re.search(r"\bu[0-3]\b", texts)
    assert page.locator("#frame img").evaluate("(one) => [...one.attributes].map((a) => a.name).sort()") == [
        "alt", "draggable", "src", "style"
    ]  # fmt: skip
