"""Two readers go through a run by keys, and their answers arrive in results, checks, report and scorecard."""

import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import beta, binomtest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.manifest import Manifest
from medlt.recipes import review
from medlt.recipes.review import ReviewOptions
from medlt.review.reading_list import order

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
COMMENT = 'two hearts, "blurred"'
# of three real and three synthetic images, each kind in the order of uids: what each reader takes them for, and thinks
ORIGIN = {"anna": "rrsssr", "ben": "rsssrr"}
PLAUSIBLE = {"anna": "pppipp", "ben": "pppppp"}
WRONG = {"anna": {0}, "ben": set[int]()}
UNSURE = {"anna": set[int](), "ben": {4}}


@pytest.fixture(scope="module")
def run(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("read") / "run"))


def chosen(run: Path) -> pd.DataFrame:
    """The images of the review, the real ones first, with finding and label."""
    listed = pd.read_parquet(run / "review" / "seed-0.parquet")
    rows = Manifest.read(run / "manifest.parquet").rows.loc[sorted(listed.index)]
    listed = listed.loc[rows.index].assign(synthetic=rows["synthetic"].astype(bool))
    listed["label"] = [rows.at[uid, finding] >= 0.5 for uid, finding in listed["finding"].items()]
    return listed.sort_values("synthetic", kind="stable")


def keys(images: pd.DataFrame, reader: str, place: int) -> str:
    """The keys with which a reader answers the image at this place of the table."""
    present = images["label"].iloc[place] != (place in WRONG[reader])
    presence = "u" if place in UNSURE[reader] else "y" if present else "n"
    return ORIGIN[reader][place] + PLAUSIBLE[reader][place] + presence


def read(run: Path, reader: str, open_page: Open) -> None:
    """Serve the review as the command does, and answer all images by keys."""
    addresses: list[str] = []
    served = threading.Event()

    def opened(address: str) -> None:
        addresses.append(address)
        served.set()

    options = ReviewOptions(reader, images=3)
    thread = threading.Thread(target=review.main, args=(run, options), kwargs={"opened": opened}, daemon=True)
    thread.start()
    assert served.wait(120)
    page, images = open_page(addresses[0]), chosen(run)
    uids = order(list(images.index), 0, reader)
    for number, uid in enumerate(uids, 1):
        page.locator("#place", has_text=re.compile(f"^image {number} of 6")).wait_for()
        page.evaluate("document.querySelector('#frame img').decode()")
        place = images.index.get_loc(uid)
        page.keyboard.type(keys(images, reader, place))
        if reader == "anna" and place == 3:
            page.keyboard.type("c" + COMMENT)
            page.keyboard.press("Escape")
        page.keyboard.press("Enter")
    page.locator("#place", has_text="All are answered").wait_for()
    page.get_by_role("button", name="Stop reading").click()
    page.locator("#saved", has_text="Stopped").wait_for()
    thread.join(10)
    assert not thread.is_alive()


def called(*words: str, code: int = 0) -> dict[str, Any]:
    """What a command prints as JSON."""
    done = CliRunner().invoke(app, [*words, "--json", "--quiet"])
    assert done.exit_code == code, done.stderr
    return dict(json.loads(done.stdout))


def test_two_readers_from_key_to_scorecard(run: Path, open_page: Open) -> None:
    for reader in ("anna", "ben"):
        read(run, reader, open_page)
    images = chosen(run)
    results = called("review", str(run), "--results")
    assert results["readings"] == {"anna": 6, "ben": 6}
    rates = pd.DataFrame(results["rates"]).set_index(["question", "kind", "finding", "reader"])

    def rate(*which: str) -> list[float]:
        return list(rates.loc[which, ["count", "of", "low", "high"]])

    # visual Turing test: anna is right in 4 of 6, ben in 2 of 6; the interval counts each of six images once
    exact = binomtest(3, 6).proportion_ci(method="exact")
    assert rate("origin", "all", "all", "all") == pytest.approx([6, 12, exact.low, exact.high])
    exact = binomtest(4, 6).proportion_ci(method="exact")
    assert rate("origin", "all", "all", "anna") == pytest.approx([4, 6, exact.low, exact.high])
    # anna recognises 2 of 3 synthetic images, ben 1: 1.5 of 3 images
    recognised = [3, 6, beta.ppf(0.025, 1.5, 2.5), beta.ppf(0.975, 2.5, 1.5)]
    assert rate("origin", "synthetic", "all", "all") == pytest.approx(recognised)
    assert rate("plausibility", "synthetic", "all", "all")[:2] == [5, 6]
    # labels: anna contradicts that of the first real image, ben is unsure of the second synthetic one
    for finding in sorted(set(images["finding"])):
        at = [place for place in range(6) if images["finding"].iloc[place] == finding]
        counts = [(place not in WRONG[who]) for who in WRONG for place in at if place not in UNSURE[who]]
        assert rate("presence", "all", finding, "all")[:2] == [sum(counts), len(counts)]
    assert rate("presence", "all", "all", "all")[:2] == [10, 11]
    kappas = pd.DataFrame(results["kappas"]).set_index("question")
    # 4 of 6 alike, each reader half and half: (4/6 - 1/2) / (1 - 1/2)
    assert kappas.at["origin", "kappa"] == pytest.approx(1 / 3)
    # 5 of 6 alike, ben never implausible: by chance 5/6
    assert kappas.at["plausibility", "kappa"] == pytest.approx(0)
    rejected, contradicted = images.index[3], images.index[0]
    assert [(one["uid"], one["reader"], one["comment"]) for one in results["rejected"]] == [(rejected, "anna", COMMENT)]
    assert [(one["uid"], one["reader"]) for one in results["contradictions"]] == [(contradicted, "anna")]
    arrives_in_check_report_and_scorecard(run, rejected, contradicted, open_page)


def arrives_in_check_report_and_scorecard(run: Path, rejected: str, contradicted: str, open_page: Open) -> None:
    done = called("check", str(run), code=1)
    (one,) = [one for one in done["checks"] if one["check"] == "readers"]
    assert (one["status"], sorted(one["uids"])) == ("failed", sorted([rejected, contradicted]))
    assert "1 of 3 synthetic images that readers read are rejected" in one["conclusion"]
    called("report", str(run))
    page = open_page(run / "report.html")
    text = page.locator("#readings").inner_text()
    for expected in (rejected, contradicted, COMMENT, "0.33", "anna (6 images), ben (6 images)"):
        assert expected in text
    card = (run / "SCORECARD.md").read_text()
    assert "6 of 12: 0.50 [0.12, 0.88]" in card  # guesses of real or synthetic
    assert "5 of 6: 0.83" in card  # synthetic images that readers call plausible
