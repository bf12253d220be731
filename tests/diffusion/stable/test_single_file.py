"""A single file in the original layout becomes the folder it was made from."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medlt.diffusion.codec import load_codec
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.diffusion.stable.single_file import convert_single_file
from medlt.diffusion.stable.untrained import untrained
from medlt.types import InputError

UNET = "model.diffusion_model."


def original() -> ModuleType:
    spec = importlib.util.spec_from_file_location("original", Path(__file__).with_name("original.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIZES: dict[str, dict[str, Any]] = {
    "1.5": {"widths": (32, 64, 64), "layers": 2, "text_width": 64, "text_layers": 2, "vae": (32, 64)},
    "2.1": {"widths": (64, 128), "layers": 1, "text_width": 64, "text_layers": 3, "vae": (32, 64, 64)},
}


@pytest.fixture(scope="session", params=["1.5", "2.1"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder, and the same weights as one file."""
    size, place = SIZES[request.param], tmp_path_factory.mktemp("single")
    folder = untrained(place / "model", version=request.param, **size)
    file = place / "one.safetensors"
    original().write_original(
        folder, file, layers=size["layers"], levels=len(size["vae"]), clip_layers=size["text_layers"],
        is_open=request.param == "2.1",
    )  # fmt: skip
    return folder, file


@pytest.fixture
def file(both: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the file, in a folder of its own."""
    return Path(shutil.copy(both[1], tmp_path / "one.safetensors"))


def weights(network: Any) -> dict[str, torch.Tensor]:
    return {name: value.half() for name, value in network.state_dict().items()}


def test_a_file_is_the_folder_it_was_made_from(both: tuple[Path, Path], file: Path) -> None:
    ours = load_stable_diffusion(file, config=both[0] / "tokenizer")
    theirs = load_stable_diffusion(both[0])
    for one, other in ((ours.unet, theirs.unet), (ours.text_encoder, theirs.text_encoder)):
        told = weights(other)
        assert weights(one).keys() == told.keys()
        assert all(torch.equal(value, told[name]) for name, value in weights(one).items())
    assert (ours.prediction, ours.noise) == (theirs.prediction, theirs.noise)
    x, t, ids = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.arange(77)[None]
    with torch.no_grad():
        said = ours.text_encoder(ids).last_hidden_state
        assert torch.allclose(said, theirs.text_encoder(ids).last_hidden_state, atol=2e-2)
        answers = [m.unet(x, t, encoder_hidden_states=said).sample for m in (ours, theirs)]
    assert torch.allclose(*answers, atol=2e-2)


def test_the_inferred_configs_are_the_written_ones(both: tuple[Path, Path], file: Path) -> None:
    convert_single_file(file, file.parent / "made", tokenizer=both[0])
    for part in ("unet", "text_encoder", "vae"):
        made, told = (
            json.loads((folder / part / "config.json").read_text()) for folder in (file.parent / "made", both[0])
        )
        assert {k: made.get(k) for k in told if made.get(k) != told[k]} == {}


def test_its_autoencoder_is_a_codec(both: tuple[Path, Path], file: Path) -> None:
    load_stable_diffusion(file, config=both[0] / "tokenizer")
    ours, theirs = load_codec(file.with_name("one.diffusers"), "cpu"), load_codec(both[0], "cpu")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours.decode(z), theirs.decode(z), atol=2e-2)
    assert ours.factor == theirs.factor


def test_a_file_is_converted_once(both: tuple[Path, Path], file: Path) -> None:
    first = load_stable_diffusion(file, config=both[0])
    made = file.with_name("one.diffusers")
    assert sorted(p.name for p in file.parent.iterdir()) == ["one.diffusers", "one.safetensors"]
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    assert load_stable_diffusion(file).digest == first.digest
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before
    save_file({"other": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"was made from another file than one.safetensors; move it away"):
        load_stable_diffusion(file)


def test_prediction_is_what_is_said(both: tuple[Path, Path], file: Path) -> None:
    other = "epsilon" if load_stable_diffusion(both[0]).prediction == "v_prediction" else "v_prediction"
    assert load_stable_diffusion(file, config=both[0] / "tokenizer", prediction=other).prediction == other


def change(file: Path, how: Any) -> None:
    save_file(how(load_file(file)), file)


def without(start: str) -> Any:
    return lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(start)}


def nine(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = tensors[f"{UNET}input_blocks.0.0.weight"]
    return tensors | {f"{UNET}input_blocks.0.0.weight": torch.zeros(len(first), 9, 3, 3)}


def with_one(name: str) -> Any:
    return lambda tensors: tensors | {name: torch.zeros(1)}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (without("cond_stage_model."), "has no text encoder under the original names"),
        (without("first_stage_model."), "has no autoencoder under the original names"),
        (without(UNET), "has no unet under the original names"),
        (without(f"{UNET}output_blocks.1."), "tensors are missing, first up_blocks"),
        (with_one(f"{UNET}input_blocks.1.2.strange"), "unet.: 1 tensors are not in the config"),
        (with_one("conditioner.embedders.0.x"), "is Stable Diffusion XL; only Stable Diffusion 1.x and 2.x"),
        (with_one(f"{UNET}double_blocks.0.x"), "is Flux; only"),
        (without(f"{UNET}input_blocks.1.1."), "its unet has another layout .*; give `config`"),
        (nine, "9 channels in and 4 out: this is an inpainting model"),
    ],
)
def test_what_is_no_such_file(both: tuple[Path, Path], file: Path, how: Any, message: str) -> None:
    change(file, how)
    with pytest.raises(InputError, match=message):
        load_stable_diffusion(file, config=both[0] / "tokenizer")
    assert [p.name for p in file.parent.iterdir()] == ["one.safetensors"]


def test_without_a_tokenizer(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer; give `config`, a folder with vocab.json and merges.txt"):
        load_stable_diffusion(file)
    with pytest.raises(InputError, match=r"holds no tokenizer .vocab.json and merges.txt."):
        load_stable_diffusion(file, config=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]


def test_a_config_beside_a_folder_is_a_mistake(both: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="`config` is for single files"):
        load_stable_diffusion(both[0], config=both[0])


def test_pickled_files_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"not to be opened")
    with pytest.raises(InputError, match=r"is not a .safetensors file; pickled files are never opened"):
        load_stable_diffusion(tmp_path / "model.ckpt")
