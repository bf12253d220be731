"""A given encoder of the audit: its features by hand, every size, and what is refused before the audit begins."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModel
from typer.testing import CliRunner

from medlt.cli import app
from medlt.recipes._encoder import given_encoder
from medlt.types import InputError

published = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "classify" / "weights.py")))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(published.write_model("vit", tmp_path_factory.mktemp("weights") / "vit"))


def test_it_gives_the_features_of_the_model_as_unit_vectors(vit: Path) -> None:
    encoder, given = given_encoder(vit), json.loads((vit / "preprocessor_config.json").read_text())
    images = torch.randint(0, 256, (40, 1, 48, 48), generator=torch.Generator().manual_seed(0)).byte()
    size = json.loads((vit / "config.json").read_text())["image_size"]
    mean, deviation = (torch.tensor(given[name]).view(-1, 1, 1) for name in ("image_mean", "image_std"))
    whole = functional.interpolate(images / 255, (size, size), mode="bilinear", antialias=True)
    model = AutoModel.from_pretrained(vit).eval()
    with torch.no_grad():
        last = model(pixel_values=(whole.expand(-1, len(mean), -1, -1) - mean) / deviation).pooler_output
    torch.testing.assert_close(encoder(images), functional.normalize(last), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(images.float() / 255), encoder(images))
    assert encoder(images[:0]).shape[0] == 0


def test_a_folder_that_is_none_ends_the_audit_before_it_begins(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--encoder: .* is no folder"):
        given_encoder(tmp_path / "lost")
    done: Any = CliRunner().invoke(app, ["audit", str(finished), "--encoder", str(tmp_path / "lost")])
    assert done.exit_code == 2
    assert "--encoder:" in done.stderr
    assert not (finished / "audit.json").exists()
