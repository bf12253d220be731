"""Pretrained weights: loaded as published, they compute what their own libraries compute, or are refused in a line."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from medlt.classify.frozen import predict_rows, stored_features
from medlt.classify.networks import Network, network
from medlt.classify.pretrained import read_pretrained, require_size
from medlt.classify.settings import ClassifierSettings
from medlt.classify.train import TrainingSet, fit_classifier, load_classifier
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import InputError

published = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("weights.py"))))
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
"""Mean and deviation of torchvision's weights, by its documentation."""
FAST: dict[str, Any] = {"steps": 4, "batch_size": 4, "evaluate_every": 2, "patience": 9}


def at(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Where and how a training runs, and where it is kept."""
    return {"runtime": Runtime("cpu", "fp32", 1, seed), "store": Store(folder)}


def blobs(n: int, seed: int, prefix: str = "u", size: int = 64) -> TrainingSet:
    """Two findings one can see: a bright square on the left, one on the right."""
    rng, half = np.random.default_rng(seed), size // 2
    labels = (rng.random((n, 2)) < 0.5).astype(np.float32)
    images = rng.integers(0, 60, (n, 1, size, size)).astype(np.uint8)
    for k in range(2):
        images[labels[:, k] == 1, :, half - 8 : half + 8, 4 + half * k : 20 + half * k] += 120
    return TrainingSet(
        torch.from_numpy(images), labels, np.ones(n, np.float32), tuple(f"{prefix}{i}" for i in range(n))
    )


REAL, VAL = blobs(24, 0), blobs(12, 1, "v")
IMAGES = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(3))


def loaded(name: str, path: Path) -> Network:
    weights = read_pretrained(name, path)
    net = network(name, 2, 0, weights.spec)
    weights.load(net)
    return net.eval()


@torch.no_grad()
def agree(net: Network, want: Tensor, images: Tensor = IMAGES) -> None:
    got = net.features(images)
    assert want.std() > 1e-3, "an oracle that says the same of all images proves nothing"
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("counted", [True, False])
def test_densenet121_computes_what_torchvisions_does(tmp_path: Path, counted: bool) -> None:
    weights = published.densenet121(counted=counted)
    net = loaded("densenet121", published.write(weights, tmp_path / "tv.safetensors"))
    agree(net, published.densenet121_features(weights, published.rgb(IMAGES, *IMAGENET)))


def test_the_names_of_torchvisions_published_file_are_known(tmp_path: Path) -> None:
    """densenet121-a639ec97.pth has denselayer1.norm.1 where the network has denselayer1.norm1."""
    weights = published.densenet121()
    old = {}
    for name, value in weights.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in name else name
        old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    net = loaded("densenet121", published.write(old, tmp_path / "tv.safetensors"))
    agree(net, published.densenet121_features(weights, published.rgb(IMAGES, *IMAGENET)))


def test_torchxrayvisions_densenet_reads_one_channel_from_minus_to_plus_1024(tmp_path: Path) -> None:
    weights = published.densenet121(channels=1)
    saved = weights | {"op_threshs": torch.full((18,), torch.nan)}
    net = loaded("densenet121", published.write(saved, tmp_path / "xrv.safetensors"))
    levels = (2 * IMAGES - 1) * 1024  # torchxrayvision.datasets.normalize, of an image divided by its maximum
    agree(net, published.densenet121_features(weights, levels))


@pytest.mark.parametrize(("channels", "prefix"), [(3, ""), (1, "model.")])
def test_resnet50_computes_what_transformers_does(tmp_path: Path, channels: int, prefix: str) -> None:
    model = published.resnet50_model(channels)
    net = loaded("resnet50", published.write(published.resnet50(model, prefix), tmp_path / "r.safetensors"))
    rgb = published.rgb(IMAGES, *IMAGENET)
    with torch.no_grad():
        agree(net, model(rgb if channels == 3 else (2 * IMAGES - 1) * 1024).pooler_output.flatten(1))


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    weights = {name: value.half() for name, value in published.densenet121().items()}
    net = loaded("densenet121", published.write(weights, tmp_path / "half.safetensors"))
    assert {value.dtype for value in net.parameters()} == {torch.float32}


def changed(name: str, **changes: Any) -> dict[str, Tensor]:
    weights = published.densenet121() if name == "densenet121" else published.resnet50(published.resnet50_model())
    return {key: value for key, value in {**weights, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "weights", "problem"),
    [
        ("resnet50", lambda: changed("resnet50", **{"layer3.5.conv2.weight": None}), r"no tensor layer3\.5\.conv2"),
        ("resnet50", lambda: changed("resnet50", **{"layer1.0.se.weight": torch.ones(2)}), r"a tensor layer1\.0\.se"),
        (
            "resnet50",
            lambda: changed("resnet50", **{"conv1.weight": torch.ones(32, 3, 3, 3)}),
            r"conv1\.weight has shape \[32, 3, 3, 3\], resnet50 needs \[64, 3, 7, 7\]",
        ),
        ("resnet50", lambda: changed("densenet121"), "write classifier.network: densenet121$"),
        ("densenet121", lambda: changed("resnet50"), "write classifier.network: resnet50$"),
        ("densenet121", lambda: changed("densenet121", **{"features.norm5.bias": None}), r"no tensor .*norm5\.bias"),
        ("small", lambda: {"a": torch.ones(1)}, "no weights are published for network small"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, name: str, weights: Any, problem: str) -> None:
    file = published.write(weights(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=problem) as error:
        read_pretrained(name, file)
    assert "\n" not in str(error.value)


def test_a_pickle_and_what_is_no_file_are_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(b"not one")
    for place, problem in {
        "w.pth": r"can run code .* safetensors\.torch\.save_file",
        "w.safetensors": "damaged or no safetensors",
        "none.safetensors": "does not exist",
        ".": "write classifier.network: folder",
    }.items():
        with pytest.raises(InputError, match=problem) as error:
            read_pretrained("resnet50", tmp_path / place)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", published.MODELS)
def test_a_folder_computes_what_its_own_model_does(tmp_path: Path, name: str) -> None:
    size, folder = published.MODELS[name][2], published.write_model(name, tmp_path / name)
    images = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(1))
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(pixel_values=published.rgb(images, published.MEAN, published.DEVIATION))
    token = name == "vit_classifier"  # its pooler was never saved: random weights must not become features
    agree(loaded("folder", folder), out.last_hidden_state[:, 0] if token else out.pooler_output.flatten(1), images)


def test_position_embeddings_are_interpolated_and_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = published.write_model("dinov2", tmp_path / "dino")
    weights = read_pretrained("folder", folder)
    require_size("folder", weights, 112)
    assert loaded("folder", folder)(torch.rand(1, 1, 112, 112)).isfinite().all()
    with pytest.raises(InputError, match=r"size: 64 is no multiple of 14, .* write 56 or 70$"):
        require_size("folder", weights, 64)
    swin = read_pretrained("folder", published.write_model("swin", tmp_path / "swin"))
    with pytest.raises(InputError, match="cannot take 16 pixels") as error:
        require_size("folder", swin, 16)
    assert "\n" not in str(error.value)


def spoil(folder: Path, name: str, **changes: Any) -> None:
    given = json.loads((folder / name).read_text())
    kept = {key: value for key, value in {**given, **changes}.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("spoilt", "problem"),
    [
        (lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"), "has no model.safetensors"),
        (lambda at: (at / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda at: (at / "config.json").write_text("{"), "config.json is damaged"),
        (lambda at: spoil(at, "config.json", model_type=None), "names no model_type"),
        (lambda at: spoil(at, "config.json", model_type="of_tomorrow"), "cannot build 'of_tomorrow'"),
        (lambda at: spoil(at, "config.json", model_type="bert"), "bert reads more than images"),
        (lambda at: spoil(at, "config.json", model_type="vit_mae"), "hides patches at random"),
        (lambda at: spoil(at, "config.json", num_hidden_layers=3), "has no tensor .*2"),
        (lambda at: spoil(at, "config.json", num_hidden_layers=1), "has a tensor .*1"),
        (lambda at: spoil(at, "config.json", intermediate_size=48), "cannot be loaded|has shape"),
        (lambda at: spoil(at, "preprocessor_config.json", image_mean=None), "has no image_mean"),
        (lambda at: spoil(at, "preprocessor_config.json", image_mean=[0.5], image_std=[0.5]), "1 means, the model"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, spoilt: Any, problem: str) -> None:
    folder = published.write_model("vit", tmp_path / "vit")
    spoilt(folder)
    with pytest.raises(InputError, match=problem) as error:
        read_pretrained("folder", folder)
    assert "\n" not in str(error.value)


def test_remote_code_is_not_run_and_no_path_is_recorded(tmp_path: Path) -> None:
    folder = published.write_model("vit", tmp_path / "vit")
    want = read_pretrained("folder", folder).spec["config"]
    (folder / "evil.py").write_text("raise SystemExit('this code ran')")
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    spoil(folder, "config.json", auto_map=code, _name_or_path="somewhere/vit")
    assert read_pretrained("folder", folder).spec["config"] == want
    assert loaded("folder", folder)(IMAGES).shape == (3, 2)


def test_features_of_other_pixels_are_other_features(tmp_path: Path) -> None:
    folder = published.write_model("vit", tmp_path / "vit")
    options: dict[str, Any] = FAST | {"network": "folder", "weights": folder, "frozen": True}
    trained = fit_classifier(REAL, VAL, **at(tmp_path / "a"), **options)
    store, other = Store(tmp_path / "a"), VAL.images.clone()
    other[-1] = 255 - other[-1]
    one, two = (stored_features(trained, images, store) for images in (VAL.images, other))
    torch.testing.assert_close(one, trained.features(VAL.images))
    torch.testing.assert_close(two, trained.features(other))


def test_the_scale_of_pixels_in_preprocessor_config_counts(tmp_path: Path) -> None:
    """Models that read 0 to 255, or [0,1] without a mean, are as common as those of ImageNet's mean."""
    folder = published.write_model("vit", tmp_path / "vit")
    for changes, want in (
        ({"do_rescale": False}, (IMAGES * 255 - 0.53) / 0.25),
        ({"rescale_factor": 1 / 127.5}, (IMAGES * 2 - 0.53) / 0.25),
        ({"do_normalize": False, "rescale_factor": 1 / 255, "do_rescale": True}, IMAGES),
    ):
        spoil(folder, "preprocessor_config.json", **{"do_rescale": True, "do_normalize": True} | changes)
        net = network("folder", 2, 0, read_pretrained("folder", folder).spec)
        torch.testing.assert_close(net.standardise(IMAGES)[:, :1], want)


def test_the_contents_of_weights_are_in_the_key_and_their_path_is_not(tmp_path: Path) -> None:
    one = published.write_model("vit", tmp_path / "one")
    twin = Path(shutil.copytree(one, tmp_path / "two"))
    other = published.write_model("vit", tmp_path / "other", seed=1)
    store, options = Store(tmp_path / "store"), FAST | {"network": "folder", "steps": 2}
    runtime = Runtime("cpu", "fp32", 1, 0)
    for folder in (one, twin, other):
        fit_classifier(REAL, VAL, runtime=runtime, store=store, weights=folder, **options)
        if folder is not other:
            assert len(store.folders("classifier")) == 1
    assert len(store.folders("classifier")) == 2
    assert str(tmp_path) not in "".join(file.read_text() for file in store.root.rglob("*.json"))


def test_a_fine_tuned_classifier_starts_from_the_weights_and_needs_them_no_more(tmp_path: Path) -> None:
    folder = published.write_model("vit", tmp_path / "vit")
    still = fit_classifier(
        REAL, VAL, **at(tmp_path / "a"), network="folder", weights=folder, learning_rate=1e-12, **FAST
    )
    for name, value in AutoModel.from_pretrained(folder).state_dict().items():
        torch.testing.assert_close(still.net.body.state_dict()[f"model.{name}"], value, atol=1e-6, rtol=0)
    (kept,) = Store(tmp_path / "a").folders("classifier")
    shutil.rmtree(folder)
    assert torch.equal(load_classifier(kept, "cpu").predict(VAL.images), still.predict(VAL.images))


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each pass through a body."""
    seen, inner = list[int](), Network.features

    def counted(net: Network, images: Tensor) -> Tensor:
        seen.append(len(images))
        return inner(net, images)

    monkeypatch.setattr(Network, "features", counted)
    return seen


def test_frozen_weights_stay_and_each_image_passes_once_for_all_arms_and_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = published.write_model("dinov2", tmp_path / "dino"), Store(tmp_path / "store")
    real, val, added = (blobs(n, seed, name, 70) for n, seed, name in ((24, 0, "u"), (12, 1, "v"), (6, 2, "s")))
    options: dict[str, Any] = FAST | {"network": "folder", "weights": folder, "frozen": True, "steps": 8}
    seen = passes(monkeypatch)
    first = fit_classifier(real, val, runtime=Runtime("cpu", "fp32", 1, 0), store=store, added=added, **options)
    assert sum(seen) == 24 + 12 + 6
    for seed, more in ((1, {}), (0, {"loss": "focal"}), (0, {"training_strategy": "crt"})):
        fit_classifier(real, val, runtime=Runtime("cpu", "fp32", 1, seed), store=store, added=added, **options, **more)
    assert sum(seen) == 24 + 12 + 6
    known = predict_rows(first, val.images, store)
    assert sum(seen) == 24 + 12 + 6, "rows whose features are stored are predicted without a pass"
    torch.testing.assert_close(known, first.predict(val.images), atol=1e-3, rtol=0)
    for name, value in AutoModel.from_pretrained(folder).state_dict().items():
        assert torch.equal(first.net.body.state_dict()[f"model.{name}"], value)
    for place in store.folders("classifier"):
        assert set(load_file(place / "classifier.safetensors")) == {"weight", "bias"}, "a head alone is kept"


def test_a_frozen_classifier_needs_the_weights_it_was_trained_on(tmp_path: Path) -> None:
    folder = published.write_model("vit", tmp_path / "vit")
    other = published.write_model("vit", tmp_path / "other", seed=1)
    options: dict[str, Any] = FAST | {"network": "folder", "weights": folder, "frozen": True}
    real, val = blobs(24, 0), blobs(12, 1, "v")
    trained = fit_classifier(real, val, **at(tmp_path / "a"), **options)
    (kept,) = Store(tmp_path / "a").folders("classifier")
    again = load_classifier(kept, "cpu", read_pretrained("folder", folder))
    assert torch.equal(again.predict(val.images), trained.predict(val.images))
    for wrong in (None, read_pretrained("folder", other)):
        with pytest.raises(InputError, match="head on frozen weights"):
            load_classifier(kept, "cpu", wrong)


def test_frozen_weights_learn_what_can_be_seen(tmp_path: Path) -> None:
    """A head on random features tells left from right; tau-normalisation and two workers' keys go the same way."""
    folder = published.write_model("resnet", tmp_path / "resnet")
    real, val = blobs(160, 0), blobs(60, 1, "v")
    options: dict[str, Any] = {"network": "folder", "weights": folder, "frozen": True, "tau_norm": True}
    trained = fit_classifier(real, val, **at(tmp_path / "a"), steps=300, batch_size=32, evaluate_every=50, **options)
    assert max(one["val_macro_ap"] for one in trained.record["history"]) > 0.8


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"network": "folder"}, "classifier.weights is missing: network folder"),
        ({"frozen": True}, "classifier.weights is missing: frozen"),
        ({"network": "folder", "frozen": True, "augment": "light"}, "augment: none"),
        ({"network": "folder", "frozen": True, "mixup": "mixup"}, "mixup: none"),
        ({"precision": "fp16"}, "write bf16 or fp32"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    if "mixup" in settings or "augment" in settings:
        settings = settings | {"weights": published.write_model("vit", tmp_path / "vit")}
    with pytest.raises(InputError, match=problem):
        ClassifierSettings(**settings)


def test_frozen_weights_turn_the_augmentation_off(tmp_path: Path) -> None:
    folder = published.write_model("vit", tmp_path / "vit")
    assert ClassifierSettings().augment == "light"
    assert ClassifierSettings(network="folder", weights=folder, frozen=True).augment == "none"
