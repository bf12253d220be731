"""What the networks are made of, where a library decides it."""

from __future__ import annotations

from torch import nn

from medlt.classify.networks import NETWORKS, network


def test_the_small_network_has_group_norm_in_its_stem_and_batch_norm_in_its_blocks() -> None:
    """A MONAI that gives `norm` to the blocks as well would change every classifier under its old key."""
    body = network("small", 3).body
    norms = {name: type(part) for name, part in body.named_modules() if "norm" in type(part).__name__.lower()}
    assert norms.pop("bn1") is nn.GroupNorm
    assert len(norms) == 4 * 2 + 3  # two a block, and one in each shortcut that changes shape
    assert set(norms.values()) == {nn.BatchNorm2d}


def test_a_network_has_a_row_of_its_head_for_each_finding() -> None:
    assert {name: network(name, 3).head.out_features for name in NETWORKS} == dict.fromkeys(NETWORKS, 3)
