"""Weights of any origin are read as they are, or refused in one line: no traceback, no endless allocation."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medlt.classify.folder import read_folder
from medlt.classify.pretrained import read_pretrained
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.stable.network import read_all
from medlt.diffusion.stable.single_file import as_folder
from medlt.files import read_tensors, write_tensors
from medlt.privacy.votes import read_votes
from medlt.sparse.embedding import SimplicialCoder
from medlt.types import InputError


def file_of(header: Any, body: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    """The bytes of a safetensors file with any header, and any length of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ONE, TWO = json.dumps(entry([1], 0, 4)), json.dumps(entry([1], 4, 8))
BAD = {
    "longer than the file": file_of({"a": entry([2], 0, 8)}, length=10_000),
    "2 ** 63": file_of({}, length=2**63),
    "2 ** 64 - 1": file_of({}, length=2**64 - 1),
    "a tensor twice": file_of(f'{{"a": {ONE}, "a": {TWO}}}'.encode()),
    "overlapping": file_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
    "a hole": file_of({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "backwards": file_of({"a": entry([1], 4, 0)}),
    "beyond the file": file_of({"a": entry([2], 0, 8)}, b"\0"),
    "more than is there": file_of({"a": entry([2**62, 4], 0, 8)}),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}, "a": entry([2], 0, 8)}),
    "metadata of a list": file_of({"__metadata__": [1], "a": entry([2], 0, 8)}),
    "unknown type": file_of({"a": entry([2], 0, 8, "F33")}),
    "no UTF-8": file_of(b"\xff"),
    "no object": file_of([1]),
    "deep": file_of(b"[" * 100_000),
    "zeros": b"\0" * 64,
    "empty": b"",
}


def of_label_network(file: Path) -> object:
    """The folder of a denoiser with this file of weights."""
    LabelUNet(channels=1, findings=2, width=8).save(folder := file.with_name("denoiser"))
    file.rename(folder / "model.safetensors")
    return LabelUNet.load(folder)


OPENERS: dict[str, Callable[[Path], object]] = {
    "artifact": read_tensors,
    "votes": read_votes,
    "sparse coder": SimplicialCoder.load,
    "denoiser": of_label_network,
    "classifier": lambda file: read_pretrained("resnet50", file),
    "stable diffusion": lambda file: read_all([file]),
    "single file": as_folder,
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("kind", BAD)
def test_a_malicious_file_is_refused_in_one_line(kind: str, opener: str, tmp_path: Path) -> None:
    (file := tmp_path / "x.safetensors").write_bytes(BAD[kind])
    with pytest.raises(InputError) as refused:
        OPENERS[opener](file)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert len(str(refused.value)) < 600


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    network = LabelUNet(channels=1, findings=2, width=8)
    network.save(tmp_path)
    assert LabelUNet.load(tmp_path).settings == network.settings
    tensors = read_tensors(tmp_path / "model.safetensors")
    name = sorted(tensors)[0]
    write_tensors(tmp_path / "model.safetensors", {**tensors, name: torch.full_like(tensors[name], torch.nan)})
    with pytest.raises(InputError, match="holds NaN or infinity"):
        LabelUNet.load(tmp_path)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "weights.bin", 1, ""])
def test_an_index_names_no_file_outside_its_folder(shard: object, tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    write_tensors(tmp_path / "outside.safetensors", {"a": torch.zeros(1)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="names no safetensors files of the folder"):
        read_folder(folder)


def test_a_coder_of_other_tensors_is_none(tmp_path: Path) -> None:
    coder = {"medlt": json.dumps({"config": {"unknown": 1}})}
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, coder)
    with pytest.raises(InputError, match="is not a sparse coder"):
        SimplicialCoder.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("mean", [["a"], [None], "rgb", None, [[1]]])
def test_a_scale_of_no_numbers_is_refused(mean: object, tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": [1.0]}))
    with pytest.raises(InputError, match="has no image_mean and image_std"):
        read_folder(tmp_path)
