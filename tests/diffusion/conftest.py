"""Shared by the tests of diffusion: a small but real CLIP tokenizer."""

from pathlib import Path

import pytest

from medlt.diffusion.stable.untrained import small_tokenizer


@pytest.fixture(scope="session")
def clip_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `CLIPTokenizer.from_pretrained` reads: some 700 entries, 77 tokens at most."""
    folder = tmp_path_factory.mktemp("clip_tokenizer")
    small_tokenizer(folder)
    return folder
