"""Any backbone is fine-tuned, in full or by LoRA, and a training that was cut goes on to the same bits."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.diffusion.adapt import Finetuning, FullFinetuning, LoraFinetuning, has_adapters, make_trainable
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.finetune import LabelledLatents, Objective, SampleGrid, backbone_key, train_backbone
from medlt.diffusion.labels import LabelUNet, LabelVector
from medlt.diffusion.losses import Noised
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.diffusion.stable.untrained import untrained
from medlt.diffusion.train import new_network, train_denoiser
from medlt.diffusion.transformer import LabelTransformer
from medlt.files import read_tensors
from medlt.rng import noise_like
from medlt.store import Store
from medlt.training.checkpoint import FILE
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import InputError

N = 16
UIDS = [f"u{i}" for i in range(N)]
LABELS = np.stack([np.arange(N) % 2, np.where(np.arange(N) % 3, 1.0, np.nan)], 1)
ABOUT = [{"sex": "FM"[i % 2], "age": 40 + i} for i in range(N)]
TRAINING = Training(steps=4, learning_rate=1e-3, batch_size=4, warmup_steps=1, checkpoint_every=3)
LORA = LoraFinetuning(rank=2)
CPU = Runtime("cpu", "fp32", None, 0)


def latents(uids: Sequence[str]) -> Tensor:
    at = [int(uid[1:]) for uid in uids]
    level = torch.tensor([2.0 * (i % 2) - 1 for i in at]).reshape(-1, 1, 1, 1)
    return level + 0.1 * noise_like(at, (4, 8, 8))


DATA = LabelledLatents(latents, UIDS, LABELS, "bright or dark", ABOUT, [f"p{i // 2}" for i in range(N)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 1.5's format with a few thousand weights."""
    return untrained(
        tmp_path_factory.mktemp("sd") / "model", version="1.5", widths=(32, 64), layers=1, text_width=32, text_layers=2
    )


def stable(folder: Path, text: Any = "frozen") -> Backbone:
    return load_stable_diffusion(folder).backbone(Prompts(("Mass", "Edema")), text)


def small(**settings: Any) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LabelUNet(4, 2, width=8, **settings).backbone()


class Linear(torch.nn.Module):
    """Answers its one weight times the first label, or 0.5 when told nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        said = torch.where(condition[:, -1] > 0, condition[:, 0], torch.tensor(0.5))
        return self.weight * said.reshape(-1, 1, 1, 1).expand_as(x_t)

    @classmethod
    def backbone(cls) -> Backbone:
        return Backbone(cls(), LabelVector(2), "sample", 4, "linear")


def train(backbone: Backbone, folder: Path, training: Training = TRAINING, **more: Any) -> Backbone:
    told: dict[str, Any] = {"runtime": CPU} | more
    return train_backbone(backbone, DATA, folder=folder, training=training, **told)


def same_files(a: Path, b: Path) -> bool:
    one, two = (read_tensors(folder / FILE) for folder in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.network.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("text", "how"),
    [("frozen", LORA), ("trained", FullFinetuning()), ("trained", LoraFinetuning(rank=2, conv=True, dropout=0.2))],
)
def test_stable_diffusion_cut_and_gone_on_with_is_the_whole_to_the_bit(
    tmp_path: Path, folder: Path, text: str, how: Finetuning
) -> None:
    training = replace(TRAINING, lr_scheduler="cosine")
    whole = train(stable(folder, text), tmp_path / "whole", training, finetuning=how)
    train(stable(folder, text), tmp_path / "cut", replace(training, stop_at=3), finetuning=how)
    cut = train(stable(folder, text), tmp_path / "cut", training, finetuning=how)
    assert same_files(tmp_path / "whole", tmp_path / "cut")
    assert not changed(weights(whole), weights(cut))
    assert whole.digest == cut.digest != stable(folder, text).digest


@pytest.mark.parametrize(
    ("text", "how", "parts"),
    [
        ("frozen", FullFinetuning(), {"unet"}),
        ("trained", FullFinetuning(), {"unet", "text_encoder"}),
        ("trained", FullFinetuning(text_encoder=False), {"unet"}),
        ("trained", LORA, {"unet", "text_encoder"}),
        ("trained", LoraFinetuning(rank=2, text_encoder=False), {"unet"}),
    ],
)
def test_what_is_asked_for_is_trained_and_nothing_else(
    tmp_path: Path, folder: Path, text: str, how: Finetuning, parts: set[str]
) -> None:
    backbone = stable(folder, text)
    before = weights(backbone)
    after = weights(train(backbone, tmp_path, finetuning=how))
    moved = changed(before, {name.replace(".base_layer", ""): value for name, value in after.items()})
    assert {name.split(".")[0] for name in moved} == parts
    kept = {name for name in read_tensors(tmp_path / FILE) if name.startswith("network.")}
    assert all("lora_" in name for name in moved | kept) == isinstance(how, LoraFinetuning)
    assert {f"network.{name}" for name in moved} <= kept


def test_lora_starts_at_the_network_as_it_is_and_its_checkpoint_is_small(tmp_path: Path, folder: Path) -> None:
    """The first loss of LoRA is that of full training; alpha / rank scales what it learns; files hold adapters only."""
    for name, how in {"full": FullFinetuning(), "lora": LORA, "twice": LoraFinetuning(rank=2, alpha=4.0)}.items():
        train(stable(folder), tmp_path / name, replace(TRAINING, steps=2), finetuning=how)
    first = [pd.read_parquet(tmp_path / name / "history.parquet")["loss"] for name in ("full", "lora", "twice")]
    assert first[0].iloc[0] == first[1].iloc[0] == first[2].iloc[0]
    assert first[1].iloc[1] != first[2].iloc[1]
    sizes = [(tmp_path / name / FILE).stat().st_size for name in ("full", "lora")]
    assert sizes[1] < sizes[0] / 5


def test_lora_on_convolutions_has_them_too(folder: Path) -> None:
    from peft.tuners.lora import Conv2d

    found = {}
    for conv in (False, True):
        net = stable(folder).network
        make_trainable(net, LoraFinetuning(rank=2, conv=conv), 0)
        found[conv] = {name.rsplit(".", 1)[1] for name, module in net.named_modules() if isinstance(module, Conv2d)}
    assert found == {False: set(), True: {"conv1", "conv2", "conv_shortcut", "conv"}}


def test_the_adapter_goes_into_diffusers_own_file_and_back(tmp_path: Path, folder: Path) -> None:
    """Trained, saved as diffusers' LoRA and loaded anew with it: the same prediction."""
    from medlt.diffusion.stable.save import save_lora

    tuned = train(stable(folder, "trained"), tmp_path / "run", finetuning=LORA)
    saved = save_lora(tuned.network.unet, tmp_path / "lora", tuned.network.text_encoder)  # type: ignore[arg-type]
    again = load_stable_diffusion(folder, loras=[saved]).backbone(Prompts(("Mass", "Edema")), "trained")
    x, t = latents(UIDS[:2]), torch.tensor([10, 700])
    told = tuned.condition(torch.tensor(LABELS[:2], dtype=torch.float32), ABOUT[:2])
    with torch.no_grad():
        outs = [one.network(x, t, told) for one in (tuned, again, stable(folder, "trained"))]
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-4)
    assert (outs[0] - outs[2]).abs().max() > 1e-4


def test_gradient_checkpointing_and_micro_batches_change_memory_and_not_the_training(
    tmp_path: Path, folder: Path
) -> None:
    for name, changes in {
        "plain": {},
        "memory": {"gradient_checkpointing": True},
        "micro": {"gradient_accumulation_steps": 2},
    }.items():
        tuned = train(stable(folder, "trained"), tmp_path / name, replace(TRAINING, **changes), finetuning=LORA)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in tuned.network.modules())
    one, two, three = (read_tensors(tmp_path / name / FILE) for name in ("plain", "memory", "micro"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(one[name], three[name], atol=1e-5, rtol=1e-3)


def test_gradient_checkpointing_recomputes(folder: Path, tmp_path: Path) -> None:
    """A resnet's first convolution runs twice a step with it, once without."""
    for checkpointing, runs in ((False, 1), (True, 2)):
        backbone, seen = stable(folder), list[object]()
        watched: Any = backbone.network.get_submodule("unet.down_blocks.0.resnets.0.conv1")
        watched.register_forward_hook(lambda module, given, out, seen=seen: seen.append(module))
        training = replace(TRAINING, steps=1, gradient_checkpointing=checkpointing)
        train(backbone, tmp_path / str(runs), training)
        assert len(seen) == runs


@pytest.mark.parametrize("how", [FullFinetuning(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("family", [LabelUNet, LabelTransformer])
def test_the_label_families_are_trained_alike(tmp_path: Path, family: Any, how: Finetuning) -> None:
    own: dict[str, Any] = {"width": 8} if family is LabelUNet else {"width": 16, "depth": 1, "heads": 2, "size": 8}
    for name, stops in {"whole": (4,), "cut": (2, 4)}.items():
        for stop in stops:
            backbone = new_network(family, DATA, 3, own).backbone()
            tuned = train(backbone, tmp_path / name, replace(TRAINING, stop_at=stop), finetuning=how)
    assert same_files(tmp_path / "whole", tmp_path / "cut")
    assert has_adapters(tuned.network) == isinstance(how, LoraFinetuning)


def test_train_denoiser_takes_a_family(tmp_path: Path) -> None:
    settings = {"width": 16, "depth": 1, "heads": 2, "size": 8}
    net = train_denoiser(latents, UIDS, LABELS, contents="levels", folder=tmp_path, family=LabelTransformer,
                         settings=settings, steps=2, runtime=CPU)  # fmt: skip
    assert isinstance(net, LabelTransformer)
    again = LabelTransformer.load(tmp_path)
    assert again.backbone().digest == net.backbone().digest


def test_a_finished_training_is_loaded_and_gives_the_same_backbone(tmp_path: Path, folder: Path) -> None:
    seen: list[int] = []
    first = train(stable(folder), tmp_path, finetuning=LORA)
    again = train(
        stable(folder), tmp_path, finetuning=LORA, runtime=replace(CPU, progress=lambda *told: seen.append(told[1]))
    )
    assert (again.digest, seen) == (first.digest, [])
    assert not changed(weights(first), weights(again))
    others: list[dict[str, Any]] = [
        {"finetuning": FullFinetuning()},
        {"finetuning": LoraFinetuning(rank=3)},
        {"objective": Objective(condition_dropout=0.5)},
        {"validation": DATA},
        {"runtime": replace(CPU, seed=1)},
        {"runtime": CPU.at("bf16")},
    ]
    for other in others:
        with pytest.raises(InputError, match="other settings or data"):
            train(stable(folder), tmp_path, **({"finetuning": LORA} | other))


def test_the_backbone_that_comes_back_is_the_moving_average(tmp_path: Path) -> None:
    tuned = train(small(), tmp_path)
    named = read_tensors(tmp_path / FILE)
    for i, (name, weight) in enumerate(tuned.network.named_parameters()):
        assert torch.equal(weight, named[f"average.{i}"])
        assert not torch.equal(weight, named[f"network.{name}"])
    assert not tuned.network.training
    assert not any(weight.requires_grad for weight in tuned.network.parameters())


def loss_at(noised: Noised, _: torch.Generator) -> Tensor:
    return noised.estimate.abs().flatten(1).mean(1)


def test_further_losses_are_part_of_the_training(tmp_path: Path) -> None:
    train(small(), tmp_path / "plain")
    train(small(), tmp_path / "extra", extra_losses=[loss_at], validation=DATA)
    one, two = (pd.read_parquet(tmp_path / name / "history.parquet") for name in ("plain", "extra"))
    assert two["loss"].iloc[0] > one["loss"].iloc[0]
    with pytest.raises(InputError, match="other settings or data"):
        train(small(), tmp_path / "extra")


def test_the_validation_loss_is_on_fixed_noise_without_further_losses(tmp_path: Path) -> None:
    """Two trainings, one with a further loss and no learning to speak of: the same validation loss."""
    idle = replace(TRAINING, learning_rate=1e-12, ema_decay=0.0)
    for name, extra in {"plain": (), "extra": (loss_at,)}.items():
        train(small(), tmp_path / name, idle, extra_losses=extra, validation=DATA)
    one, two = (
        pd.read_parquet(tmp_path / name / "history.parquet")["validation"].dropna() for name in ("plain", "extra")
    )
    assert list(one.index) == [3, 4]
    assert one.iloc[0] == pytest.approx(one.iloc[1], rel=1e-5)
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_balanced_rows_are_drawn_by_rarity_and_one_a_patient(tmp_path: Path) -> None:
    rare = np.zeros((N, 2))
    rare[3, 0] = 1
    seen: list[list[str]] = []

    def look(noised: Noised, _: torch.Generator) -> Tensor:
        seen.append(list(noised.rows.uids))
        return noised.out.sum() * 0

    data = replace(DATA, labels=rare)
    for rule in (None, "inverse_sqrt"):
        train_backbone(Linear.backbone(), data, folder=tmp_path / str(rule), training=replace(TRAINING, steps=30),
                       objective=Objective(balance=rule), extra_losses=[look], runtime=CPU)  # fmt: skip
    count = [sum("u3" in uids for uids in part) for part in (seen[:30], seen[30:])]
    assert count[0] in (7, 8)  # 30 batches of 4 are 7.5 epochs
    assert count[1] > 12  # it weighs sqrt(15) as much as any other row
    patients = [{DATA.patients[int(uid[1:])] for uid in uids} for uids in seen[30:]]
    assert all(len(names) == 4 for names in patients)


def test_a_sample_grid_is_drawn_from_the_same_noise_each_time(tmp_path: Path, folder: Path) -> None:
    from PIL import Image

    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    asked: list[Tensor] = []

    def decode(z: Tensor) -> Tensor:
        asked.append(z)
        return z[:, :1].sigmoid()

    samples = SampleGrid(labels, (8, 8), decode, scheduler="ddpm", steps=3)
    tuned = train(stable(folder), tmp_path / "a", finetuning=LORA, samples=samples)
    train(stable(folder), tmp_path / "b", finetuning=LORA, samples=samples)
    names = ["step_000003.png", "step_000004.png"]
    files = [[(tmp_path / run / "samples" / name).read_bytes() for name in names] for run in "ab"]
    assert files[0] == files[1]
    assert files[0][0] != files[0][1]
    torch.testing.assert_close(samples.picture(tuned)(tuned.network), asked[1][:, :1].sigmoid(), atol=1e-5, rtol=1e-4)
    with Image.open(tmp_path / "a" / "samples" / names[0]) as image:
        assert (image.size, image.mode) == ((16, 8), "L")


def test_a_sample_grid_shows_what_the_labels_say() -> None:
    """A network that answers the label, or 0.5 when told nothing, guided by weight w: 0.5 + w (label - 0.5)."""
    backbone = Linear.backbone()
    samples = SampleGrid(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), (4, 4), lambda z: z[:, :1], steps=4, weight=1.5)
    bright, dark = samples.picture(backbone)(backbone.network)
    torch.testing.assert_close(bright, torch.full((1, 4, 4), 1.25))
    torch.testing.assert_close(dark, torch.full((1, 4, 4), -0.25))


def bad(uids: Sequence[str]) -> Tensor:
    return latents(uids).index_fill(0, torch.tensor([0]), float("nan"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            replace(DATA, latents=lambda uids: latents(uids)[:, :3]),
            "the latents have 3 channels, the backbone expects 4",
        ),
        (replace(DATA, labels=LABELS[:, :1]), r"labels of 1 findings give conditions \(3,\), the backbone"),
        (replace(DATA, latents=bad), "the latent of u0 is not finite; encode it again in fp32"),
    ],
)
def test_data_that_do_not_fit_are_one_line(tmp_path: Path, data: LabelledLatents, said: str) -> None:
    with pytest.raises(InputError, match=said):
        train_backbone(small(), data, folder=tmp_path, training=TRAINING, runtime=CPU)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_asked_for_is_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="LoRA rank is 0; give at least 1"):
        LoraFinetuning(rank=0)
    with pytest.raises(InputError, match="objective: condition_dropout is 2"):
        Objective(condition_dropout=2)
    with pytest.raises(InputError, match=r"clamped to 6\.\.5\.0"):
        Objective(snr_floor=6)
    with pytest.raises(InputError, match="16 uids but 3 patients"):
        replace(DATA, patients=["p"] * 3)
    with pytest.raises(InputError, match="balance: unknown rule 'rare'"):
        train(small(), tmp_path, objective=Objective(balance="rare"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a denoiser has no early stopping"):
        train(small(), tmp_path, replace(TRAINING, patience=2))
    tuned = train(stable(folder), tmp_path, finetuning=LORA)
    with pytest.raises(InputError, match="already has LoRA layers"):
        train(tuned, tmp_path / "again", finetuning=LORA)
    with pytest.raises(InputError, match="no layer named to_q"):
        make_trainable(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), LORA, 0)


def test_latents_are_named_by_their_contents_all_of_them() -> None:
    """Not by a look at the first few: data that differ in their last latent alone are other data."""
    assert DATA.digest() == replace(DATA).digest()
    others: list[dict[str, Any]] = [
        {"contents": "dark or bright"}, {"uids": [*UIDS[:-1], "u99"]}, {"labels": 1 - LABELS},
        {"about": [*ABOUT[:-1], {"sex": "F"}]}, {"patients": ["p"] * N},
    ]  # fmt: skip
    assert len({DATA.digest()} | {replace(DATA, **other).digest() for other in others}) == 1 + len(others)
    with pytest.raises(TypeError, match="contents"):
        LabelledLatents(latents, UIDS, LABELS)  # type: ignore[call-arg]


def test_a_key_holds_all_that_decides_a_backbone() -> None:
    plain: dict[str, Any] = {"training": TRAINING, "runtime": CPU}
    others: list[dict[str, Any]] = [
        {"training": replace(TRAINING, steps=5)},
        {"training": replace(TRAINING, learning_rate=1.0)},
        {"training": replace(TRAINING, stop_at=2)},
        {"runtime": replace(CPU, seed=1)},
        {"runtime": CPU.at("bf16")},
        {"finetuning": LORA},
        {"objective": Objective(condition_dropout=0.2)},
        {"extra_losses": [loss_at]},
        {"validation": DATA},
        {"name": "b"},
    ]
    keys = [backbone_key(small(), DATA, **plain | other) for other in [{}, *others]]
    keys.append(backbone_key(small(), replace(DATA, contents="other"), **plain))
    keys.append(backbone_key(small(prediction="epsilon"), DATA, **plain))
    assert len({str(key) for key in keys}) == len(keys)
    same = {
        "training": replace(TRAINING, gradient_accumulation_steps=2, checkpoint_every=1),
        "runtime": replace(CPU, threads=3),
    }
    assert backbone_key(small(), DATA, **same) == keys[0]  # type: ignore[arg-type]
    continued = [
        backbone_key(small(), DATA, **plain | {"training": replace(TRAINING, steps=n)}, steps=False) for n in (4, 9)
    ]
    assert continued[0] == continued[1]


def test_in_a_store_a_longer_training_continues_a_shorter_one(tmp_path: Path) -> None:
    """Each is an artifact of its own; their work folder is shared, and other latents under the same uids are not."""
    store, seen = Store(tmp_path), list[int]()

    def make(steps: int, data: LabelledLatents = DATA) -> Path:
        training, runtime = replace(TRAINING, steps=steps), replace(CPU, progress=lambda *told: seen.append(told[1]))
        told: dict[str, Any] = {"training": training, "runtime": runtime}
        return store.make(
            "denoiser", backbone_key(small(), data, **told), work=backbone_key(small(), data, steps=False, **told),
            build=lambda folder: weights_of(train_backbone(small(), data, folder=folder, **told), folder),
        ).folder  # fmt: skip

    def weights_of(backbone: Backbone, folder: Path) -> None:
        backbone.network.save(folder)  # type: ignore[operator]

    short = make(3)
    long = make(5)
    assert seen == [1, 2, 3, 4, 5]
    assert short != long
    assert make(3) == short
    assert seen == [1, 2, 3, 4, 5]
    other = make(3, replace(DATA, latents=lambda uids: -latents(uids), contents="inverted"))
    assert seen == [1, 2, 3, 4, 5, 1, 2, 3]
    found = [read_tensors(folder / "model.safetensors") for folder in (short, other)]
    assert any(not torch.equal(value, found[1][name]) for name, value in found[0].items())
