"""What an ablation makes: a base config, and the same with one setting changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from medlt import config as configs
from medlt.config.ablation import Ablation
from medlt.files import digest
from medlt.types import InputError
from pipelines import windows


@dataclass(frozen=True)
class Variant:
    """A base config with one setting changed; `seed` is added to that of the sparse code and of the plan."""

    factor: str
    value: Any
    config: configs.RunConfig
    seed: int
    is_base: bool

    @property
    def method(self) -> configs.Fusion:
        if not isinstance(self.config.method, configs.Fusion):
            raise InputError(f"an ablation is one of latent fusion, not of {self.config.method.kind}")
        return self.config.method

    @cached_property
    def name(self) -> str:
        """The same for two variants that are one, such as the base and its own value of a factor."""
        return f"{digest(self.method.model_dump(), self.config.sparse.model_dump())}-{self.seed}"

    @property
    def code(self) -> str:
        """Names the settings of its sparse code, but for how many generations of it are used."""
        return f"{digest(self.config.sparse.model_dump(exclude={'generations'}))}-{self.seed}"


def variants(base: configs.RunConfig, asked: Ablation) -> list[Variant]:
    """The base and every value of every factor, for every seed. Raises InputError for a value that is not allowed."""
    found = []
    for seed in range(asked.seeds):
        own = Variant("base", "", base, seed, True)
        found.append(own)
        for key, values in asked.vary.items():
            section, _, name = key.partition(".")
            for value in values:
                tree = base.model_dump(mode="json")
                tree[section][name] = value
                changed = configs.parse(tree, f"ablation of {key}")
                windows.look(changed)
                one = Variant(name, value, changed, seed, False)
                found.append(Variant(name, value, changed, seed, one.name == own.name))
    return found
