"""Keyword settings become the config of the command line; what is left out is chosen by collection and machine."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import medlt
from medlt import config as configs
from medlt.api import defaults
from medlt.api.settings import merged, nested, run_config
from medlt.config import catalogue
from medlt.data.manifest import Manifest
from medlt.recipes.augment import check

KEYS = st.sampled_from(["a", "b", "c"])
TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=6
).filter(lambda tree: isinstance(tree, dict))


def dotted(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    """The leaves of a tree by dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= dotted(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return leaves


def usual(collection: medlt.Collection, given: dict[str, Any]) -> dict[str, Any]:
    """The defaults on the device that is given, else on this machine."""
    return defaults.defaults(collection, given, defaults.machine(given))


@given(TREES)
def test_dotted_keys_are_the_nested_mapping(tree: dict[str, Any]) -> None:
    assert nested(dotted(tree)) == tree
    assert nested(tree) == tree


@given(TREES, TREES)
def test_given_settings_win_and_the_others_stay(usual: dict[str, Any], given: dict[str, Any]) -> None:
    result = dotted(merged(usual, given))
    for key, value in dotted(given).items():
        assert result[key] == value
    kept = {key for key in dotted(usual) if not any(f"{key}.".startswith(f"{name}.") for name in dotted(given))}
    over = {key for key in kept if any(name.startswith(f"{key}.") for name in dotted(given))}
    assert all(result[key] == dotted(usual)[key] for key in kept - over)


def test_a_section_of_another_kind_replaces_the_usual_one() -> None:
    usual = {"codec": {"kind": "train", "width": 32}, "size": 64}
    assert merged(usual, {"codec": {"kind": "folder", "path": "x"}})["codec"] == {"kind": "folder", "path": "x"}
    assert merged(usual, {"codec": {"steps": 5}})["codec"] == {"kind": "train", "width": 32, "steps": 5}


def test_short_forms() -> None:
    assert nested({"targets": 200, "method": "edit"}) == {"targets": {"count": 200}, "method": {"kind": "edit"}}
    assert nested({"method": "edit", "method.strength": 0.3}) == {"method": {"kind": "edit", "strength": 0.3}}
    assert nested({"targets": None}) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "stepz"),
        ({"denoiser": {"stepz": 3}}, "denoiser.stepz.*steps"),
        ({"method": "fuison"}, "fuison.*fusion"),
        ({"targets": -1}, "targets.count"),
        ({"denoiser.steps": 3, "denoiser": {"steps": 4}}, "denoiser.steps is given twice"),
        ({"denoiser.steps": 3, "denoiser.steps.a": 4}, "steps is given as a value too"),
        ({"data": {"kind": "csv"}}, "data: the collection is the data"),
        ({"size": "big"}, "size"),
        ({"denoiser": 5}, "denoiser"),
        ({"targets": {"tail_below": "x"}}, "targets.tail_below"),
    ],
)
def test_bad_settings_are_one_line(
    tiny_collection: medlt.Collection, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(medlt.InputError, match=message) as raised:
        run_config(tiny_collection, {"output_dir": tmp_path / "run", **settings})
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []  # nothing is written for settings that do not fit


def test_the_config_is_the_one_of_the_command_line(
    tiny_collection: medlt.Collection, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    made = run_config(tiny_collection, {"output_dir": tmp_path / "run", **tiny_settings})
    tree = usual(tiny_collection, nested(tiny_settings))
    data = {"kind": "manifest", "path": str(tiny_collection.saved(tmp_path))}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**merged(tree, tiny_settings), "output_dir": str(tmp_path / "run"), "data": data}))
    assert configs.load_config(file) == made
    assert made.denoiser.steps == 6
    assert made.skip_unreadable


def test_the_run_folder_is_named_by_rows_and_settings(
    tiny_collection: medlt.Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [
        run_config(tiny_collection, settings).output_dir
        for settings in (
            {},
            {"seed": 0},
            {"seed": 1},
            {"method": "edit"},
            {"artifacts_dir": "shared"},
            {"denoiser.steps": 9},
        )
    ]
    assert folders[0].parent == tmp_path / "runs"
    assert folders[0].name.startswith("fusion-")
    assert folders[3].name.startswith("edit-")
    assert folders[4] == folders[0]
    assert len(set(folders)) == 5  # seed 0 is the default, and yet another name, because it was given
    assert run_config(tiny_collection, {}).output_dir == folders[0]


def large(counts: dict[str, int], side: int, folder: Path) -> medlt.Collection:
    """A collection with so many train positives, whose first image has this side."""
    total = sum(counts.values())
    rows = pd.DataFrame(index=pd.Index([f"u{i}" for i in range(total)], name="uid"))
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((side, side // 2), np.uint8)).save(folder / "one.png")
    rows = rows.assign(path="one.png", patient_id=[f"p{i}" for i in range(total)], split="train", view="PA")
    names = np.repeat(list(counts), list(counts.values()))
    return medlt.Collection(
        Manifest(rows.assign(**{name: (names == name).astype(float) for name in counts}), tuple(counts), folder)
    )


def test_defaults_by_what_the_collection_has(tmp_path: Path) -> None:
    small = large({"A": 5, "B": 60, "C": 300}, 3000, tmp_path)
    tree = usual(small, {"device": "cpu"})
    assert tree["size"] == 128
    assert tree["targets"] == {"count": 60}  # up to the rarest finding that is not tail
    big = large({"A": 5, "B": 60, "C": 1500}, 100, tmp_path)
    tree = usual(big, {"device": "cpu"})
    assert tree["size"] == 96
    assert tree["targets"] == {"count": 100}
    assert usual(big, {"targets": {"count": 7}})["targets"] == {}


@pytest.mark.parametrize(
    ("device", "images", "codec", "denoiser"),
    [("cpu", 65, 180, 200), ("cpu", 299, 180, 200), ("cpu", 300, 750, 937), ("cpu", 500, 1250, 1562),
     ("cpu", 3000, 1500, 2000), ("cuda", 65, 400, 800)],
)  # fmt: skip
def test_few_images_get_fewer_steps(tmp_path: Path, device: str, images: int, codec: int, denoiser: int) -> None:
    tree = usual(large({"A": 5, "B": images - 5}, 64, tmp_path), {"device": device})
    assert (tree["codec"]["steps"], tree["denoiser"]["steps"]) == (codec, denoiser)


def test_few_images_on_a_cpu_get_the_settings_of_the_quick_config(tmp_path: Path) -> None:
    tree = usual(large({"A": 5, "B": 100}, 3000, tmp_path), {"device": "cpu"})
    quick = yaml.safe_load(catalogue.path("dicom_folder/quick").read_text())
    assert tree["size"] == quick["size"]
    assert tree["threads"] == 1
    for section in ("codec", "sparse", "denoiser", "classifier"):
        assert {**tree[section], **quick[section]} == tree[section]
    assert usual(large({"A": 5, "B": 100}, 3000, tmp_path), {"device": "cpu", "size": 128})["size"] == 128


def test_defaults_by_machine_and_privacy(tmp_path: Path) -> None:
    collection = large({"A": 5, "B": 60, "C": 300}, 3000, tmp_path)
    gpu = usual(collection, {"device": "cuda"})
    assert gpu["size"] == 256
    assert gpu["denoiser"]["width"] > 64
    budget = {"epsilon": 8, "delta": 1e-6, "patients": 3000, "findings": ["A", "B"]}
    private = usual(collection, {"device": "cpu", "privacy": budget})
    assert private == usual(large({"A": 9, "B": 9}, 40, tmp_path / "b"), {"device": "cpu", "privacy": budget})
    assert private["method"] == {"kind": "noise"}
    assert "balance" not in private["denoiser"]


def test_the_size_of_dicom_images_is_read_from_their_headers(tiny_collection: medlt.Collection) -> None:
    assert defaults.image_size(tiny_collection, 128) == 64


@pytest.mark.parametrize("method", ["fusion", "edit", "noise", "diffult", "minority", "longtail"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_defaults_of_every_method_can_be_run(
    tiny_collection: medlt.Collection, tmp_path: Path, method: str, device: str
) -> None:
    given = {"method": method, "device": device, "output_dir": tmp_path / "run"}
    config = run_config(tiny_collection, given)
    assert (config.method.kind, config.device) == (method, device)
    check(config.model_copy(update={"device": "cpu"}))


def test_the_defaults_of_a_private_run_can_be_run(tiny_collection: medlt.Collection, tmp_path: Path) -> None:
    privacy = {"epsilon": 8, "delta": 1e-3, "patients": 24, "findings": ["Mass"]}
    given = {"privacy": privacy, "output_dir": tmp_path / "run", "denoiser.batch_size": 8, "codec.batch_size": 8}
    config = run_config(tiny_collection, given)
    check(config)
    assert config.data_independent


def test_stable_diffusion_takes_its_own_autoencoder(tiny_collection: medlt.Collection, tmp_path: Path) -> None:
    denoiser = {"kind": "stable-diffusion", "model": {"kind": "folder", "path": str(tmp_path)}}
    tree = usual(tiny_collection, {"denoiser": denoiser})
    assert tree["codec"] == {"kind": "folder", "path": str(tmp_path)}
    assert tree["denoiser"] == {"kind": "stable-diffusion", "balance": "inverse_sqrt"}
