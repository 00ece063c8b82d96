"""An MLP-Mixer over given tokens; a port as a callable pytree of one example, vmapped."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

TOKENS, FEATURES, WIDTH, DEPTH = 11, 9, 16, 3


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class MixerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.token_mix = nn.LayerNorm(WIDTH), FeedForward(TOKENS, 13)
        self.norm2, self.channel_mix = nn.LayerNorm(WIDTH), FeedForward(WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(MixerBlock() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


def torch_model() -> nn.Module:
    return draw(Mixer())


def inputs() -> Any:
    return (np.random.default_rng(0).standard_normal((3, TOKENS, FEATURES)).astype(np.float32),)


def pytree(*static: str) -> Callable[[type], type]:
    """Registers a frozen dataclass; the static fields are no leaves."""

    def register(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True)(cls)
        data = [field.name for field in dataclasses.fields(cls) if field.name not in static]
        return jax.tree_util.register_dataclass(cls, data, list(static))

    return register


@pytree()
class Affine:
    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.w @ x + self.b


@pytree()
class Normalise:
    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return jax.nn.standardize(x, epsilon=1e-5) * self.w + self.b


@pytree("act")
class MLP:
    up: Affine
    down: Affine
    act: Callable

    def __call__(self, x):
        return self.down(self.act(self.up(x)))


@pytree()
class Block:
    norm_t: Normalise
    tokens: MLP
    norm_c: Normalise
    channels: MLP

    def __call__(self, x):
        # `x` is (tokens, width); each map is of one column or of one row.
        x = x + jax.vmap(self.tokens, 1, 1)(jax.vmap(self.norm_t)(x))
        return x + jax.vmap(self.channels)(jax.vmap(self.norm_c)(x))


@pytree()
class PostNormBlock(Block):
    def __call__(self, x):
        x = jax.vmap(self.norm_t)(x + jax.vmap(self.tokens, 1, 1)(x))
        return jax.vmap(self.norm_c)(x + jax.vmap(self.channels)(x))


@pytree()
class BrokenBlock(Block):
    def __call__(self, x):
        x = jax.vmap(self.tokens, 1, 1)(jax.vmap(self.norm_t)(x))
        return x + jax.vmap(self.channels)(jax.vmap(self.norm_c)(x))


@pytree()
class MLPMixer:
    embed: Affine
    blocks: list[Block]
    norm: Normalise
    classify: Affine

    def __call__(self, x):
        return jax.vmap(self.one)(x)

    def one(self, x):
        x = jax.vmap(self.embed)(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(jax.vmap(self.norm)(x).mean(0))


def exact_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def port(
    w: Any, kinds: Any = (Block,) * DEPTH, acts: Any = (exact_gelu,) * DEPTH, square: Any = None
) -> Any:
    def affine(name: str) -> Affine:
        kernel = w[f"{name}.weight"]
        return Affine(
            jnp.asarray(kernel.T if name == square else kernel), jnp.asarray(w[f"{name}.bias"])
        )

    def norm(name: str) -> Normalise:
        return Normalise(jnp.asarray(w[f"{name}.weight"]), jnp.asarray(w[f"{name}.bias"]))

    def mlp(name: str, act: Any) -> MLP:
        return MLP(affine(f"{name}.fc1"), affine(f"{name}.fc2"), act)

    blocks = [
        kind(
            norm(f"blocks.{i}.norm1"),
            mlp(f"blocks.{i}.token_mix", act),
            norm(f"blocks.{i}.norm2"),
            mlp(f"blocks.{i}.channel_mix", act),
        )
        for i, (kind, act) in enumerate(zip(kinds, acts, strict=True))
    ]
    return MLPMixer(affine("stem"), blocks, norm("norm"), affine("head"))


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    return Case(name, "pytree", torch_model, partial(port, **changes), inputs, faults)


CASES = [
    case("vmapped"),
    case(
        "one square kernel transposed",
        Fault("blocks.1.channel_mix.fc1", ("transposed-kernel",), in_weights=True),
        square="blocks.1.channel_mix.fc1",
    ),
    case(
        "norms after the sums",
        Fault("blocks.*", ("norm-placement",)),
        kinds=(PostNormBlock,) * DEPTH,
    ),
    case(
        "no residual in the last block",
        Fault("blocks.2", ("residual",)),
        kinds=(Block, Block, BrokenBlock),
    ),
    case(
        "relu in the first block, no residual in the last",
        Fault("blocks.0.*.act", ("activation",), ("blocks.0.token_mix", "blocks.0.channel_mix")),
        Fault("blocks.2", ("residual",)),
        kinds=(Block, Block, BrokenBlock),
        acts=(jax.nn.relu, exact_gelu, exact_gelu),
    ),
]
