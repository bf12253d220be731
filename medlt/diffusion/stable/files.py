"""Files of a checkpoint folder: the required ones, the missing ones, whether they are complete, and their hashes.

Weights are read from safetensors only (https://huggingface.co/docs/safetensors: 8 bytes with the length n of the
header, n bytes of JSON, then the tensors). Pickled files are named in messages and never opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medlt.files import sha256
from medlt.types import InputError

UNET, TEXT = "diffusion_pytorch_model", "model"
STEMS = {"unet": UNET, "text_encoder": TEXT, "vae": UNET}
CONFIGS = ("model_index.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
VARIANTS = ("", "fp16", "bf16")
PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth")
LARGEST = 2**63  # values that torch can count
LONGEST_HEADER = 100_000_000  # the limit of the format


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InputError for a missing file or other contents."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; copy it from the checkpoint's folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; copy it again")
    return value


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a safetensors file, from its header alone.

    Raises InputError for a missing file, a Git LFS pointer, and a file that is cut short or has another format.
    """
    return {k: tuple(v["shape"]) for k, v in header(path).items() if k != "__metadata__"}


def header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file, after a check of the file's length. Raises InputError as `shapes`."""
    if not path.is_file():
        raise InputError(f"{path} is missing; copy it from the checkpoint's folder")
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(8)
        if start == b"version ":
            raise InputError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` where it was cloned")
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise InputError(f"{path} is cut short or no safetensors file ({size} bytes); copy it again")
        entries = _parsed(handle.read(length), path)
    whole = 8 + length + max((v["data_offsets"][1] for k, v in entries.items() if k != "__metadata__"), default=0)
    if size != whole:
        raise InputError(f"{path} has {size} bytes, but its header needs {whole}; it was cut short: copy it again")
    return entries


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    """Return the entries of a header. Raises InputError if it is not one."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict) or not all(_is_entry(name, value) for name, value in entries.items()):
        raise InputError(f"{path} is not a safetensors file (its header is not readable); copy it again")
    return entries


def _is_entry(name: str, entry: Any) -> bool:
    """Return whether an entry of a header is valid: dtype, shape and offsets of a tensor, or the metadata."""
    if name == "__metadata__" or not isinstance(entry, dict):
        return isinstance(entry, dict)
    shape, place = entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(shape, list) and isinstance(place, list) and len(place) == 2):
        return False
    whole = all(type(n) is int and n >= 0 for n in (*shape, *place))
    if not whole or not isinstance(entry.get("dtype"), str):
        return False
    room: int = place[1] - place[0]
    return math.prod(shape) <= room and math.prod(max(1, n) for n in shape) < LARGEST


@dataclass(frozen=True)
class Weights:
    """Files with the weights of a part: one file, or an index and its shards (`tensors`)."""

    tensors: tuple[Path, ...]
    index: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files."""
        return self.tensors if self.index is None else (self.index, *self.tensors)


def weights(folder: Path, stem: str) -> Weights | None:
    """Return the weights in the folder of a part: the plain file, its shards, else a 16-bit variant; None without."""
    for variant in VARIANTS:
        dotted = f".{variant}" if variant else ""
        if (whole := folder / f"{stem}{dotted}.safetensors").is_file():
            return Weights((whole,))
        if (index := folder / f"{stem}.safetensors.index{dotted}.json").is_file():
            named = read_json(index).get("weight_map")
            if not isinstance(named, dict) or not named or not all(_is_shard(name) for name in named.values()):
                raise InputError(f"{index} has no weights (weight_map is missing or broken); copy it again")
            return Weights(tuple(folder / name for name in sorted(set(named.values()))), index)
    return None


def _is_shard(name: Any) -> bool:
    """Return whether this is the name of a safetensors file in the folder of the index."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def missing(folder: Path) -> list[str]:
    """Return the names, relative to a checkpoint folder, of missing files."""
    lacking = [name for name in CONFIGS if not (folder / name).is_file()]
    for part in ("unet", "text_encoder"):
        present = weights(folder / part, STEMS[part])
        if present is None:
            lacking.append(f"{part}/{STEMS[part]}.safetensors")
        else:
            lacking += [f"{part}/{path.name}" for path in present.tensors if not path.is_file()]
    words = ("tokenizer.json",) if (folder / "tokenizer" / "tokenizer.json").is_file() else ("vocab.json", "merges.txt")
    names = [f"tokenizer/{name}" for name in (*words, "tokenizer_config.json")]
    return lacking + [name for name in names if not (folder / name).is_file()]


def require(folder: Path) -> None:
    """Raise InputError unless all files that loading reads exist. The message names each missing file."""
    if not (lacking := missing(folder)):
        return
    pickled = [path for kind in PICKLED for part in STEMS for path in sorted((folder / part).glob(kind))]
    if pickled and any(name.endswith(".safetensors") for name in lacking):
        raise InputError(
            f"{folder} lacks {', '.join(lacking)} and holds pickled {pickled[0].relative_to(folder)}, which is never "
            "opened; on a machine you trust, load it in diffusers and call save_pretrained, then copy the .safetensors"
        )
    raise InputError(
        f"{folder} lacks {', '.join(lacking)}; copy them under these same names from the checkpoint's folder on a "
        "machine that has it (docs/how-to/stable-diffusion.md lists the files)"
    )


def checkpoint_files(folder: Path) -> list[Path]:
    """Return every file that loading a checkpoint folder reads. The autoencoder belongs to the codec."""
    parts = [weights(folder / part, STEMS[part]) for part in ("unet", "text_encoder")]
    tokenizer = [folder / "tokenizer" / name for name in TOKENIZER_FILES]
    configs = [folder / name for name in CONFIGS]
    return [*configs, *(p for some in parts if some for p in some.files), *(p for p in tokenizer if p.is_file())]


def hashes(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name relative to `folder`."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(files)}


def first_difference(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> str:
    """Return the first difference between two sets of tensor shapes, in one clause; "" if they are equal."""
    if lost := sorted(expected.keys() - given.keys()):
        return f"{len(lost)} tensors are missing, first {lost[0]}"
    if extra := sorted(given.keys() - expected.keys()):
        return f"{len(extra)} tensors are not in the config, first {extra[0]}"
    for name in sorted(expected):
        if expected[name] != given[name]:
            return f"{name} is {list(given[name])}, but the config says {list(expected[name])}"
    return ""
