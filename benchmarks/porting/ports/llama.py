"""A Llama of transformers; a port as one function that scans over stacked layers."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.porting.case import Case, Fault, draw

LAYERS, HEADS, GROUPS, WIDTH = 3, 6, 2, 24


def torch_model(tied: bool = False) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=61,
        hidden_size=WIDTH,
        intermediate_size=41,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        use_cache=False,
        attn_implementation="eager",
    )
    model = draw(LlamaForCausalLM(config))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.1)
    return model


def inputs() -> Any:
    return (np.random.default_rng(0).integers(0, 61, (2, 19)),)


def stacked(w: Any) -> Any:
    """Parameters of all layers, stacked for the scan; kernels are (in, out)."""

    def every(name: str) -> jax.Array:
        return jnp.stack([jnp.asarray(w[f"model.layers.{i}.{name}.weight"]) for i in range(LAYERS)])

    def kernel(name: str) -> jax.Array:
        return every(name).swapaxes(1, 2)

    return {
        "wte": jnp.asarray(w["model.embed_tokens.weight"]),
        "blocks": {
            "ln_attn": every("input_layernorm"),
            "ln_mlp": every("post_attention_layernorm"),
            "wq": kernel("self_attn.q_proj").reshape(LAYERS, WIDTH, HEADS, -1),
            "wkv": jnp.stack(
                [
                    kernel(f"self_attn.{x}_proj").reshape(LAYERS, WIDTH, GROUPS, -1)
                    for x in ("k", "v")
                ],
                axis=1,
            ),
            "wo": kernel("self_attn.o_proj").reshape(LAYERS, HEADS, -1, WIDTH),
            "w_in": jnp.concatenate([kernel("mlp.gate_proj"), kernel("mlp.up_proj")], axis=-1),
            "w_out": kernel("mlp.down_proj"),
        },
        "ln_f": jnp.asarray(w["model.norm.weight"]),
        "head": jnp.asarray(w["lm_head.weight"]).T,
    }


def rotate_halves(x: jax.Array) -> jax.Array:
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-b, a], axis=-1)


def rotate_pairs(x: jax.Array) -> jax.Array:
    return jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)


def swiglu(x: jax.Array) -> jax.Array:
    gate, up = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * up


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float = 1e-6
    base: float = 10000.0
    rotate: Callable = rotate_halves
    share: Callable = jnp.repeat
    act: Callable = swiglu
    tied: bool = False


def rms(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps) * gain


def llama(params: Any, tokens: jax.Array, config: Config = Config()) -> jax.Array:
    x = params["wte"][tokens]
    length, half = tokens.shape[1], params["blocks"]["wq"].shape[-1] // 2
    inverse = config.base ** (-jnp.arange(half) / half)
    angles = jnp.outer(jnp.arange(length), inverse)
    spread = jnp.tile if config.rotate is rotate_halves else partial(jnp.repeat, repeats=2, axis=1)
    angles = spread(angles, (1, 2)) if spread is jnp.tile else spread(angles)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    mask = jnp.tril(jnp.ones((length, length), bool))

    def attention(x: jax.Array, p: Any) -> jax.Array:
        q = jnp.einsum("btd,dhk->bthk", x, p["wq"])
        k, v = jnp.einsum("btd,cdgk->cbtgk", x, p["wkv"])
        q, k = (y * cos + config.rotate(y) * sin for y in (q, k))
        if config.share is jnp.repeat:
            k, v = (jnp.repeat(y, HEADS // GROUPS, axis=2) for y in (k, v))
        else:
            k, v = (jnp.tile(y, (1, 1, HEADS // GROUPS, 1)) for y in (k, v))
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / jnp.sqrt(q.shape[-1])
        probs = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        return jnp.einsum("bhts,bshk,hkd->btd", probs, v, p["wo"])

    def block(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        x = x + attention(rms(x, p["ln_attn"], config.eps), p)
        x = x + config.act(rms(x, p["ln_mlp"], config.eps) @ p["w_in"]) @ p["w_out"]
        return x, None

    x, _ = jax.lax.scan(block, x, params["blocks"])
    head = params["wte"].T if config.tied else params["head"]
    return rms(x, params["ln_f"], config.eps) @ head


def port(w: Any, **changes: Any) -> Any:
    return partial(llama, config=Config(**changes)), stacked(w)


def tied_port(w: Any) -> Any:
    """The head is the embedding."""
    params = stacked(w)
    del params["head"]
    return partial(llama, config=Config(tied=True)), params


def case(name: str, *faults: Fault, tied: bool = False, **changes: Any) -> Case:
    return Case(
        name,
        "function",
        partial(torch_model, tied),
        partial(port, **changes),
        inputs,
        faults,
        float32=True,
    )


ATTENTION = "model.layers.*.self_attn"
CASES = [
    case("scan"),
    Case("tied", "function", partial(torch_model, True), tied_port, inputs, float32=True),
    case("rotary of pairs", Fault(ATTENTION, ("rotary-form",)), rotate=rotate_pairs),
    case("keys tiled over heads", Fault(ATTENTION, ("kv-repeat",)), share=jnp.tile),
    case(
        "silu on the wrong half",
        Fault("model.layers.*.mlp", ("gate-swap", "split-order"), ("model.layers.*.mlp.act_fn",)),
        act=lambda x: (
            jnp.prod(jnp.stack(jnp.split(x, 2, -1)[::-1]), 0)
            * jax.nn.sigmoid(jnp.split(x, 2, -1)[1])
        ),
    ),
    case("untied head", Fault("lm_head", ("untied-head",), ("model.embed_tokens",)), tied=True),
    case(
        "epsilon and rotary base",
        Fault("model.layers.*.*norm", ("epsilon",), ("model.norm",)),
        Fault(ATTENTION, ("rotary-base", "frequencies"), ("model.rotary_emb",)),
        eps=1e-5,
        base=1000.0,
    ),
]
