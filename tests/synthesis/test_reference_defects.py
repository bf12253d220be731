"""The thirteen known defects of the released code of arXiv 2405.01705: each test shows the defect, then its absence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from medlt.files import digest_file
from medlt.rng import numpy_generator, torch_generator
from medlt.sparse.cam import class_activation_map
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.iterated import FILE, iterate
from medlt.sparse.phases import masked_bce, sample_tokens
from medlt.store import RECORD, Store
from medlt.synthesis import pairing
from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.plan import PlanSettings
from medlt.testing import label_backbone
from medlt.training.runtime import Runtime
from medlt.types import InputError

Build = Callable[..., LatentFusion]
TINY: dict[str, Any] = {
    "groups": 2, "vocabulary": 4, "temperature": 0.1, "generations": 3, "imitation_epochs": 2, "adaptation_epochs": 1,
    "interaction_epochs": 2, "patience": 2, "width": 8, "batch_size": 16, "learning_rate": 5e-3,
}  # fmt: skip


def toy(n: int) -> tuple[torch.Tensor, np.ndarray]:
    """Unit-normal latents [n,2,8,8]; the label says whether the first channel is raised."""
    rng = numpy_generator("defects", n)
    y = (rng.random((n, 2)) < 0.5).astype(np.float32)
    z = rng.normal(size=(n, 2, 8, 8)) + y[:, :, None, None]
    return torch.from_numpy((z - z.mean()) / z.std()).float(), y


def at(folder: Path, seed: int = 3) -> dict[str, Any]:
    """Where and from which seed the code is learnt, and what its latents are called."""
    runtime = Runtime("cpu", "fp32", None, seed)
    return {"runtime": runtime, "store": Store(folder), "contents": "toy 64", "val_contents": "toy 32"}


def learn(folder: Path, seed: int = 3, **changed: Any) -> Any:
    return iterate(*toy(64), *toy(32), **at(folder, seed), **(TINY | changed))


def weights(folder: Path) -> dict[str, str]:
    """The artifacts of a store -> what names their files' bytes: those of every generation."""
    artifacts = [Store(folder).open("sparse", place) for place in Store(folder).folders("sparse")]
    return {one.digest: digest_file(one.path(FILE)) for one in artifacts if one is not None}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[SimplicialCoder, Path]:
    folder = tmp_path_factory.mktemp("learnt")
    return learn(folder).coder, folder


def test_01_a_neighbour_s_position_in_the_head_subset_does_not_index_the_whole_table(build: Build) -> None:
    method = build(plan_settings=PlanSettings(neighbours=1))
    table, tail = method.train.table, list(method.train.tail)
    mask = pairing.partner_mask(table, tail, "No Finding")
    pool = pairing.partners(table, method.train.findings, mask, method.explainer)
    maps = method.explainer.maps_of(tails := method.train.positive("Hernia"), np.full(len(tails), 2))
    near = pairing.nearest_allowed(maps, pool.maps, np.ones((len(tails), len(pool.uids)), bool), 3).ravel()
    assert table.iloc[near][tail].any(axis=None), "the published indexing would fuse tail images with tail images"
    assert not table.loc[[pool.uids[j] for j in near], tail].any(axis=None)
    assert not table.loc[method.plan({"Hernia": 9}, 0)["head_parent"], tail].any(axis=None)


def test_02_the_tail_map_and_label_are_those_of_the_tail_image(build: Build) -> None:
    method = build(labels="tail")
    rows = method.plan({"Hernia": 3}, 0).query("candidate == 0")
    table, tails = method.train.table, method.train.positive("Hernia")
    by_rank = [str(table.index[tails.index(uid)]) for uid in rows["tail_parent"]]
    own, other = (
        method.explainer.maps_of(uids, np.full(len(uids), 2)) for uids in (rows["tail_parent"].tolist(), by_rank)
    )
    shown = method.explain(rows)["cam_tail"]
    size = shown.shape[-2:]
    for maps, same in ((own, True), (other, False)):
        drawn = F.interpolate(torch.from_numpy(maps).view(-1, 1, 8, 8), size, mode="bilinear")
        assert torch.allclose(shown, drawn, atol=1e-6) is same
    labels = next(iter(method.run(rows))).labels
    assert (labels["Hernia"] == 1).all()
    assert (table.loc[by_rank, "Hernia"] == 0).any()


def test_03_maps_differ_by_class(learnt: tuple[SimplicialCoder, Path]) -> None:
    z, _ = toy(32)
    first, second = torch.zeros(32, dtype=torch.long), torch.ones(32, dtype=torch.long)

    def both(method: str) -> list[torch.Tensor]:
        return [class_activation_map(learnt[0], z, finding, method) for finding in (first, second)]

    assert torch.equal(*both("eigencam")), "the published maps know no class"
    for method in ("gradcam", "hirescam", "layercam"):
        assert (torch.sub(*both(method))).abs().mean() > 0.05


def test_04_a_word_can_be_certain(learnt: tuple[SimplicialCoder, Path]) -> None:
    logits = torch.randn(1000, 64, generator=torch_generator("logits")) * 50
    assert logits.tanh().softmax(1).max() < 0.106, "a softmax of a tanh over 64 words is nearly uniform"
    s = learnt[0].code(toy(32)[0])
    assert s.amax(2).mean() > 0.8
    assert s.amax() > 0.99


def test_05_the_decoder_reaches_beyond_one(build: Build) -> None:
    normal = torch.randn(100_000, generator=torch_generator("normal"))
    assert (normal != normal.clamp(-1, 1)).float().mean() == pytest.approx(0.317, abs=0.01)
    coder = SimplicialCoder(2, 2, groups=2, vocabulary=4, width=8)
    s = coder.code(toy(8)[0])
    once = coder.decode(s)
    with torch.no_grad():
        coder.decoder.head.weight.mul_(100)
    torch.testing.assert_close(coder.decode(s), once * 100)
    assert coder.decode(s).abs().max() > 3


def test_06_words_are_sampled_over_the_vocabulary(build: Build) -> None:
    words = torch.randint(5, (2, 3, 4, 6), generator=torch_generator("words"))  # [B,L,h,w]
    s = F.one_hot(words, 5).movedim(-1, 2).float()
    published = s.reshape(-1, 5)
    assert not (published.sum(1) == 1).all(), "rows of a reshaped NCHW are image columns, not words"
    assert torch.equal(sample_tokens(s, torch_generator("draw")), words)


def test_07_fusion_gets_the_last_generation(learnt: tuple[SimplicialCoder, Path]) -> None:
    coder, folder = learnt
    made = {}
    for place in Store(folder).folders("sparse"):
        made[json.loads((place / RECORD).read_text())["key"]["generation"]] = SimplicialCoder.load(place / FILE).digest
    assert coder.digest == made[2]
    assert coder.digest not in (made[0], made[1])


def test_08_networks_are_explained_in_eval_mode(build: Build) -> None:
    z = torch.randn(8, 2, 8, 8, generator=torch_generator("eval"))
    coder = SimplicialCoder(2, 5, groups=2, vocabulary=4, width=8).train()
    one = torch.zeros(1, dtype=torch.long)
    assert not torch.allclose(coder.code(z)[:1], coder.code(z[:1]), atol=1e-3), "in train mode a code knows its batch"
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    batch = class_activation_map(coder, z, one.expand(8))
    torch.testing.assert_close(batch[:1], class_activation_map(coder, z[:1], one))
    assert coder.training, "a map leaves the mode as it was"
    assert all(torch.equal(value, before[name]) for name, value in coder.state_dict().items())
    assert not build(coder=coder).coder.training


def test_09_the_most_confusing_class_may_have_a_negative_score() -> None:
    logits = np.array([[-3.0, -1.0, -2.0]])
    heads = [0, 2]
    published = int((logits * np.array([1, 0, 1])).mean(0).argmax())
    assert published not in heads, "an arg-max over masked logits falls on the masked class when all are negative"
    assert pairing.most_confusing(logits, heads) == 2
    assert pairing.head_finding(np.array([[1, 0, 1]]), logits).tolist() == [2]


@pytest.mark.parametrize("keep", [1, 3, 20])
def test_10_noise_is_added_before_the_last_steps(build: Build, keep: int) -> None:
    first: list[torch.Tensor] = []

    spy = label_backbone(lambda x, t, condition: (first.append(x.clone()), x)[1], 5)
    rows = build().plan({"Hernia": 4}, 0).iloc[:4]
    starts = []
    for renoise in (False, True):
        first.clear()
        list(build(backbone=spy, strength=keep / 20, renoise=renoise, guidance_scale=1.0).run(rows))
        starts.append(first[0])
    scheduler = build().scheduler()
    abar = float(scheduler.alphas_cumprod[scheduler.timesteps[-keep]])
    noise = (starts[1] - abar**0.5 * starts[0]) / (1 - abar) ** 0.5
    assert float(noise.std()) == pytest.approx(1.0, abs=0.12)
    assert abs(float(noise.mean())) < 0.15


def test_11_a_row_keeps_its_own_labels_among_several_findings(build: Build) -> None:
    method = build(labels="union")
    rows, table = method.plan({"Hernia": 4, "Pleural Other": 4}, 0), method.train.table
    tails = [uid for name in method.train.tail for uid in method.train.positive(name)]
    in_class_order = table.loc[tails, list(method.train.tail)].to_numpy()
    in_table_order = table.loc[table.index.isin(tails), list(method.train.tail)].to_numpy()[: len(tails)]
    assert not np.array_equal(in_class_order[: len(in_table_order)], in_table_order), "paths by class, labels by row"
    labels = pd.concat([batch.labels for batch in method.run(rows)])
    both = np.maximum(*(table.loc[rows[c], list(table.columns[:4])].to_numpy() for c in ("tail_parent", "head_parent")))
    assert np.array_equal(labels[list(table.columns[:4])].to_numpy(), both)
    assert all(labels.at[uid, finding] == 1 for uid, finding in rows["finding"].items())


def test_12_unknown_labels_are_masked_and_minus_one_is_refused(tmp_path: Path) -> None:
    logits = torch.tensor([[0.5, -20.0]], requires_grad=True)
    weight = torch.ones(2)
    published = F.binary_cross_entropy_with_logits(logits.detach(), torch.tensor([[1.0, -1.0]]))
    assert published < 0, "a cross-entropy with a label of -1 has no floor"
    loss = masked_bce(logits, torch.tensor([[1.0, torch.nan]]), weight)
    assert float(loss.detach()) == pytest.approx(np.log1p(np.exp(-0.5)), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 1] == 0
    z, y = toy(32)
    with pytest.raises(InputError, match="a label is -1; labels are 0, 1 or NaN"):
        iterate(z, y - 1, z, y, **at(tmp_path))


def test_13_seeded_resumable_measured_and_from_disk(learnt: tuple[SimplicialCoder, Path], tmp_path: Path) -> None:
    z, y = toy(64)
    np.save(tmp_path / "latents.npy", z.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "latents.npy", mmap_mode="c"))
    global_state = torch.random.get_rng_state()
    torch.manual_seed(99)  # the global seed must not matter
    iterate(mapped, y, *toy(32), **at(tmp_path / "a"), **(TINY | {"generations": 1}))
    torch.manual_seed(100)
    resumed = iterate(mapped, y, *toy(32), **at(tmp_path / "a"), **TINY)
    torch.random.set_rng_state(global_state)
    assert len(weights(tmp_path / "a")) == 3
    assert weights(tmp_path / "a") == weights(learnt[1])
    assert resumed.metrics["generation"].tolist() == [0, 1, 2]
    assert resumed.metrics.drop(columns="agreement").notna().all(axis=None)
    assert learn(tmp_path / "b", seed=4, generations=1).coder.digest != resumed.coder.digest
