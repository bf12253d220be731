"""Shared by the tests of diffusion: a small but real CLIP tokenizer."""

import json
from pathlib import Path

import pytest

WORDS = (
    "chest radiograph view lateral with without and no acute findings cardiomegaly pleural effusion atelectasis "
    "pneumonia pneumothorax edema hernia nodule female male patient year old years or older"
)
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}


def bytes_as_letters() -> list[str]:
    """The 256 printable letters that byte-level BPE writes bytes as, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def left_to_right(word: str) -> list[str]:
    """Merges that put a word together letter by letter: "n o</w>" of no."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    return ["".join(pieces[:i]) + " " + pieces[i] for i in range(1, len(pieces))]


def write_clip_tokenizer(folder: Path) -> Path:
    """vocab.json, merges.txt and tokenizer_config.json in CLIP's format: bytes, then merges, then the special two."""
    letters = bytes_as_letters()
    merges = list(dict.fromkeys(merge for word in WORDS.split() for merge in left_to_right(word)))
    entries = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocab = {entry: i for i, entry in enumerate([*entries, SPECIAL["bos_token"], SPECIAL["eos_token"]])}
    config = SPECIAL | {
        "pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def clip_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `CLIPTokenizer.from_pretrained` reads: about 750 entries, 77 tokens at most."""
    return write_clip_tokenizer(tmp_path_factory.mktemp("clip_tokenizer"))
