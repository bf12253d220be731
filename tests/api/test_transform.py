"""RandSyntheticSwapd against the rows and files it draws from."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose
from PIL import Image

import medlt

SIZE = 32
KEYS = ("image", "label")


def item(run: medlt.Run, finding: str | None = None) -> dict[str, Any]:
    """A real item of zeros, positive for `finding`, whose other labels are 0 but for an unknown one."""
    label = torch.zeros(len(run.findings))
    label[-1] = torch.nan
    if finding is not None:
        label[run.findings.index(finding)] = 1
    return {"uid": "real", "image": torch.zeros(1, SIZE, SIZE), "label": label, "weight": torch.tensor(1.0)}


@pytest.fixture(scope="module")
def made_for(tiny_run: medlt.Run) -> str:
    """A finding that the run has synthetic images of."""
    return str(tiny_run.images().rows["finding"].iloc[0])


def without(run: medlt.Run) -> str:
    """A finding that the run has no synthetic image of."""
    there = set(run.images().rows["finding"])
    return next(name for name in run.findings if name not in there)


def test_probability_0_changes_nothing(tiny_run: medlt.Run, made_for: str) -> None:
    swap = medlt.RandSyntheticSwapd(KEYS, tiny_run, prob=0.0, swap="any")
    given = item(tiny_run, made_for)
    result = swap(given)
    assert all(result[name] is given[name] for name in given)


def test_a_swapped_item_is_a_row_and_its_file(tiny_run: medlt.Run, made_for: str) -> None:
    swap = medlt.RandSyntheticSwapd(KEYS, tiny_run, prob=1.0).set_random_state(0)
    rows = tiny_run.images().rows
    for _ in range(8):
        result = swap(item(tiny_run, made_for))
        row = rows.loc[result["uid"]]
        assert row["finding"] == made_for
        np.testing.assert_array_equal(result["label"].numpy(), row[list(tiny_run.findings)].to_numpy(np.float32))
        pixels = np.asarray(Image.open(tiny_run.folder / row["path"]), np.float32) / 255
        np.testing.assert_allclose(result["image"][0].numpy(), pixels, atol=1e-6)
        assert float(result["weight"]) == pytest.approx(row["weight"])
        assert result["label"].dtype == torch.float32


def test_only_items_of_a_finding_with_images_are_swapped_for_tail(tiny_run: medlt.Run) -> None:
    swap = medlt.RandSyntheticSwapd(KEYS, tiny_run, prob=1.0, swap="tail")
    for finding in (None, without(tiny_run)):
        given = item(tiny_run, finding)
        result = swap(given)
        assert result["uid"] == "real"
        assert result["label"][-1].isnan()  # an unknown label stays unknown


def test_any_item_is_swapped_and_findings_are_equally_frequent(tiny_run: medlt.Run) -> None:
    swap = medlt.RandSyntheticSwapd(KEYS, tiny_run, prob=0.5, swap="any").set_random_state(1)
    finding = tiny_run.images().rows["finding"]
    given = item(tiny_run, without(tiny_run))
    uids = [swap(given)["uid"] for _ in range(600)]
    swapped = [uid for uid in uids if uid != "real"]
    assert len(swapped) == pytest.approx(300, abs=5 * 600**0.5 / 2)
    counts = Counter(finding[uid] for uid in swapped)
    assert set(counts) == set(finding)
    expected = len(swapped) / len(counts)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_the_state_decides(tiny_run: medlt.Run, made_for: str) -> None:
    def draws(seed: int) -> list[str]:
        swap = medlt.RandSyntheticSwapd(KEYS, str(tiny_run.folder), prob=0.5, swap="any").set_random_state(seed)
        return [swap(item(tiny_run, made_for))["uid"] for _ in range(20)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    whole = Compose([medlt.RandSyntheticSwapd(KEYS, tiny_run, prob=0.5, swap="any")]).set_random_state(5)
    assert len({whole(item(tiny_run, made_for))["uid"] for _ in range(20)}) > 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core
def test_it_works_in_the_workers_of_a_data_loader(tiny_run: medlt.Run) -> None:
    swap = medlt.RandSyntheticSwapd(KEYS, tiny_run, prob=0.5, swap="any")
    items = [item(tiny_run) for _ in range(24)]

    def epoch() -> list[list[str]]:
        torch.manual_seed(0)
        loader = DataLoader(Dataset(items, swap), batch_size=6, num_workers=2)
        batches = list(loader)
        assert batches[0]["image"].shape == (6, 1, SIZE, SIZE)
        assert batches[0]["label"].shape == (6, len(tiny_run.findings))
        return [batch["uid"] for batch in batches]

    first = epoch()
    assert first == epoch()
    swapped = [[uid != "real" for uid in batch] for batch in first]
    assert any(any(batch) for batch in swapped)
    assert first[0] != first[1]  # the workers have states of their own


def test_types_of_image_and_label_stay(tiny_run: medlt.Run, made_for: str) -> None:
    swap = medlt.RandSyntheticSwapd(("x", "y"), tiny_run, prob=1.0)
    given = item(tiny_run, made_for)
    arrays = {"x": given["image"].numpy().repeat(3, 0), "y": given["label"].numpy()}
    result = swap(arrays)
    assert isinstance(result["x"], np.ndarray)
    assert result["x"].shape == (3, SIZE, SIZE)
    assert isinstance(result["y"], np.ndarray)
    assert set(result) == {"x", "y"}
    tensors = swap({"x": MetaTensor(given["image"], meta={"filename_or_obj": "real.dcm"}), "y": given["label"]})
    assert isinstance(tensors["x"], MetaTensor)
    assert str(tensors["x"].meta["filename_or_obj"]).endswith(".png")
    larger = swap({"x": torch.zeros(1, 48, 48), "y": given["label"]})
    assert larger["x"].shape == (1, 48, 48)


def test_bad_arguments_are_one_line(tiny_run: medlt.Run, tiny_collection: medlt.Collection, tmp_path: Any) -> None:
    with pytest.raises(medlt.InputError, match="tail or any"):
        medlt.RandSyntheticSwapd(KEYS, tiny_run, swap="all")  # type: ignore[arg-type]
    with pytest.raises(medlt.InputError, match="image's key and the label's"):
        medlt.RandSyntheticSwapd("image", tiny_run)
    with pytest.raises(medlt.InputError, match="no synthetic image was made for"):
        medlt.RandSyntheticSwapd(KEYS, tiny_run, findings=(without(tiny_run),))
    with pytest.raises(medlt.InputError, match=r"config\.yaml"):
        medlt.RandSyntheticSwapd(KEYS, tmp_path)
    swap = medlt.RandSyntheticSwapd(KEYS, tiny_run, prob=1.0, swap="any", allow_missing_keys=True)
    assert swap({"image": 1}) == {"image": 1}
