"""Layers against PyTorch's own modules: output, gradient of every input and of every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from jaxformer.config import BlockConfig
from jaxformer.layers.attention import MultiHeadAttention, attention
from jaxformer.layers.blocks import EncoderBlock
from jaxformer.layers.masks import causal_mask, combine_masks, padding_mask
from jaxformer.layers.mlp import gelu, gelu_tanh
from jaxformer.layers.norms import LayerNorm, layer_norm
from jaxformer.models.functional import flat_params, merge
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import relative_error
from jaxformer.training.loss import cross_entropy
from parity_tests.dtypes import EACH_DTYPE

# The type of a proof is set once for all the examples of a test.
draws = settings(
    deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Few shapes: each is compiled again, operation by operation.
shapes = st.sampled_from([(1, 1, 1), (2, 5, 2), (3, 4, 4)])


@pytest.fixture(params=EACH_DTYPE)
def dtype(request):
    with arithmetic(request.param):
        yield request.param


def on_a_grid(array: np.ndarray) -> np.ndarray:
    """Multiples of 2^-8: with 1000 added, sums of up to 64 of them are exact in float32."""
    return np.round(array * 2.0**8) / 2.0**8


def check(ours, theirs, dtype: str, true_zero: bool = False) -> None:
    assert relative_error(ours, theirs, true_zero) <= BOUNDS["layer", dtype]


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def both(array: np.ndarray, dtype: str) -> tuple[jax.Array, torch.Tensor]:
    tensor = torch.tensor(array, dtype=getattr(torch, dtype), requires_grad=True)
    return jnp.asarray(array, dtype), tensor


def config_of(width: int, heads: int, dtype: str, **options) -> BlockConfig:
    sizes = {"width": width, "num_heads": heads, "mlp_width": 2 * width, "num_layers": 1}
    return BlockConfig(**sizes, dtype=dtype, **options)


def drawn(module: nnx.Module, seed: int) -> nnx.Module:
    """The module with kernels that keep the size of what they map, and no bias 0 or scale 1."""
    graphdef, state = nnx.split(module, nnx.Param)
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.Array) -> jax.Array:
        noise = rng.standard_normal(leaf.shape)
        drawn = noise / np.sqrt(len(leaf)) if leaf.ndim == 2 else np.asarray(leaf) + 0.3 * noise
        return jnp.asarray(drawn, leaf.dtype)

    return merge(graphdef, jax.tree.map(draw, nnx.to_pure_dict(state)))


def gradients(module: nnx.Module, function, *inputs):
    """function(module, *inputs), the gradients of its parameters by path, and of its inputs."""
    graphdef, state = nnx.split(module, nnx.Param)
    params = nnx.to_pure_dict(state)

    @jax.jit
    def run(*args):
        output, pullback = jax.vjp(lambda p, *x: function(merge(graphdef, p), *x), *args)
        return output, pullback(weights_like(output))

    output, (param_grads, *input_grads) = run(params, *inputs)
    return output, flat_params(param_grads), input_grads


def weights_like(output: jax.Array) -> jax.Array:
    return jnp.asarray(numbers(99, *output.shape), output.dtype)


def backward(output: torch.Tensor) -> None:
    output.backward(torch.tensor(numbers(99, *output.shape), dtype=output.dtype))


def set_weights(module: torch.nn.Module, arrays: dict) -> None:
    module.load_state_dict({name: torch.tensor(np.asarray(a)) for name, a in arrays.items()})


def packed(params: dict, prefix: str, leaf: str) -> np.ndarray:
    """Query, key and value stacked as torch.nn.MultiheadAttention keeps them."""
    parts = [np.asarray(params[f"{prefix}{name}/{leaf}"]).T for name in ("query", "key", "value")]
    return np.concatenate(parts)


@given(shape=shapes, seed=st.integers(0, 99), offset=st.sampled_from([0.0, 1000.0]))
@draws
def test_layer_norm(dtype, shape, seed, offset):
    """LayerNorm does not depend on an offset; PyTorch's own loses digits there and gets none."""
    B, L, H = shape
    layer = drawn(LayerNorm(config_of(4 * H, H, dtype)), seed)
    twin = torch.nn.LayerNorm(4 * H, eps=1e-5, dtype=getattr(torch, dtype))
    set_weights(twin, {"weight": layer.scale[...], "bias": layer.bias[...]})
    x, tx = both(on_a_grid(numbers(seed, B, L, 4 * H)), dtype)
    output, params, (x_grad,) = gradients(layer, lambda m, x: m(x), x + offset)
    expected = twin(tx)
    backward(expected)
    check(output, expected, dtype)
    check(x_grad, tx.grad, dtype)
    check(params["scale"], twin.weight.grad, dtype)
    check(params["bias"], twin.bias.grad, dtype)


def test_layer_norm_keeps_its_variance_far_from_zero():
    # E[x²] - E[x]² would be off by a fifth here.
    x = on_a_grid(numbers(0, 64, 64))
    y = layer_norm(jnp.asarray(x + 1000.0, jnp.float32), jnp.ones(64), jnp.zeros(64), 1e-5)
    truth = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    check(y, truth, "float32")


@pytest.mark.parametrize(("ours", "approximate"), [(gelu, "none"), (gelu_tanh, "tanh")])
def test_gelu(dtype, ours, approximate):
    x, tx = both(3 * numbers(0, 200), dtype)
    output, pullback = jax.vjp(ours, x)
    expected = torch.nn.GELU(approximate=approximate)(tx)
    backward(expected)
    check(output, expected, dtype)
    check(pullback(weights_like(output))[0], tx.grad, dtype)


@given(
    shape=shapes,
    M=st.sampled_from([1, 6]),
    masked=st.sampled_from(["no", "causal", "padding"]),
    seed=st.integers(0, 99),
)
@draws
def test_attention_function(dtype, shape, M, masked, seed):
    B, L, H = shape
    M = L if masked == "causal" else M
    valid = np.arange(M) < np.random.default_rng(seed).integers(1, M + 1, (B, 1))
    masks = {"no": None, "causal": causal_mask(L), "padding": padding_mask(jnp.asarray(valid))}
    mask = masks[masked]
    arrays = [numbers(seed + i, B, length, H, 4) for i, length in enumerate((L, M, M))]
    ours, theirs = zip(*(both(array, dtype) for array in arrays), strict=True)
    output, pullback = jax.vjp(lambda *qkv: attention(*qkv, mask)[0], *ours)
    allowed = None if mask is None else torch.tensor(np.asarray(mask))
    heads_first = [tensor.transpose(1, 2) for tensor in theirs]
    expected = functional.scaled_dot_product_attention(*heads_first, allowed).transpose(1, 2)
    backward(expected)
    check(output, expected, dtype)
    # With one key for every query no score matters: the gradients of q and k are zero.
    keys = M if mask is None else int(mask.sum(-1).max())
    true_zeros = (keys == 1, keys == 1, False)
    grads = pullback(weights_like(output))
    for grad, tensor, true_zero in zip(grads, theirs, true_zeros, strict=True):
        check(grad, torch.zeros_like(tensor) if true_zero else tensor.grad, dtype, true_zero)


def test_a_query_without_keys_gives_zero_and_no_nan(dtype):
    arrays = [jnp.asarray(numbers(i, 2, 3, 2, 4), dtype) for i in range(3)]
    mask = jnp.ones((2, 1, 3, 3), bool).at[1, 0, 2].set(False)
    output, pullback = jax.vjp(lambda *qkv: attention(*qkv, mask)[0], *arrays)
    q_grad, *others = pullback(jnp.ones_like(output))
    assert not output[1, 2].any()
    assert not q_grad[1, 2].any()
    assert all(np.isfinite(x).all() for x in (output, q_grad, *others))
    # The rows that have keys are as they would be alone.
    alone, _ = attention(*(x[1:] for x in arrays))
    check(output[1:, :2], np.asarray(alone[:, :2]), dtype)


@given(
    shape=shapes,
    masked=st.sampled_from(["no", "causal", "padding"]),
    seed=st.integers(0, 99),
)
@draws
def test_multi_head_attention(dtype, shape, masked, seed):
    B, L, H = shape
    D = 4 * H
    layer = drawn(MultiHeadAttention(config_of(D, H, dtype), nnx.Rngs(seed)), seed)
    params = flat_params(nnx.to_pure_dict(nnx.split(layer, nnx.Param)[1]))
    twin = torch.nn.MultiheadAttention(D, H, batch_first=True, dtype=getattr(torch, dtype))
    arrays = {
        "in_proj_weight": packed(params, "", "kernel"),
        "in_proj_bias": packed(params, "", "bias"),
        "out_proj.weight": params["out/kernel"].T,
        "out_proj.bias": params["out/bias"],
    }
    set_weights(twin, arrays)
    valid = np.arange(L) < np.random.default_rng(seed).integers(1, L + 1, (B, 1))
    mask = combine_masks(
        causal_mask(L) if masked == "causal" else None,
        padding_mask(jnp.asarray(valid)) if masked == "padding" else None,
    )
    x, tx = both(numbers(seed, B, L, D), dtype)
    output, grads, (x_grad,) = gradients(layer, lambda m, x: m(x, mask=mask)[0], x)
    forbidden = torch.ones(L, L, dtype=torch.bool).triu(1) if masked == "causal" else None
    padding = torch.tensor(~valid) if masked == "padding" else None
    expected, weights = twin(tx, tx, tx, padding, True, forbidden, average_attn_weights=False)
    backward(expected)
    check(output, expected, dtype)
    q_BLHK, kv = layer.split_heads(layer.query(x)), layer.project_kv(x)
    check(layer.attend_to(q_BLHK, kv, mask)[1], weights, dtype)
    check(x_grad, tx.grad, dtype)
    check(grads["out/kernel"].T, twin.out_proj.weight.grad, dtype)
    check(grads["out/bias"], twin.out_proj.bias.grad, dtype)
    if L > 1:  # a single key has weight 1 for any score: those gradients are zero
        check(packed(grads, "", "kernel"), twin.in_proj_weight.grad, dtype)
        check(packed(grads, "", "bias"), twin.in_proj_bias.grad, dtype)


@given(
    shape=shapes,
    placement=st.sampled_from(["pre", "post"]),
    activation=st.sampled_from(["relu", "gelu", "gelu_tanh"]),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
@draws
def test_encoder_block(dtype, shape, placement, activation, causal, seed):
    B, L, H = shape
    L, D = L + 1, 4 * H
    config = config_of(D, H, dtype, activation=activation, norm_placement=placement)
    layer = drawn(EncoderBlock(config, nnx.Rngs(seed)), seed)
    params = flat_params(nnx.to_pure_dict(nnx.split(layer, nnx.Param)[1]))
    torch_activation = {
        "relu": functional.relu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    }[activation]
    twin = torch.nn.TransformerEncoderLayer(
        *(D, H, 2 * D, 0.0),
        activation=torch_activation,
        layer_norm_eps=1e-5,
        batch_first=True,
        norm_first=placement == "pre",
        dtype=getattr(torch, dtype),
    )
    names = {
        "self_attn.out_proj": "attention/out",
        "linear1": "mlp/up",
        "linear2": "mlp/down",
    }
    norms = {"norm1": "attention_norm", "norm2": "mlp_norm"}

    def in_torch_terms(leaves: dict) -> dict:
        return {
            "self_attn.in_proj_weight": packed(leaves, "attention/", "kernel"),
            "self_attn.in_proj_bias": packed(leaves, "attention/", "bias"),
            **{f"{name}.weight": leaves[f"{path}/kernel"].T for name, path in names.items()},
            **{f"{name}.bias": leaves[f"{path}/bias"] for name, path in names.items()},
            **{f"{name}.weight": leaves[f"{path}/scale"] for name, path in norms.items()},
            **{f"{name}.bias": leaves[f"{path}/bias"] for name, path in norms.items()},
        }

    set_weights(twin, in_torch_terms(params))
    mask = causal_mask(L) if causal else None
    x, tx = both(numbers(seed, B, L, D), dtype)
    output, grads, (x_grad,) = gradients(layer, lambda m, x: m(x, mask)[0], x)
    forbidden = torch.ones(L, L, dtype=torch.bool).triu(1) if causal else None
    expected = twin(tx, src_mask=forbidden)
    backward(expected)
    check(output, expected, dtype)
    check(x_grad, tx.grad, dtype)
    ours = in_torch_terms(grads)
    for name, parameter in twin.named_parameters():
        check(ours[name], parameter.grad, dtype)


@given(shape=shapes, V=st.sampled_from([2, 7]), seed=st.integers(0, 99))
@draws
def test_cross_entropy(dtype, shape, V, seed):
    B, L, _ = shape
    rng = np.random.default_rng(seed)
    targets, mask = rng.integers(0, V, (B, L)), rng.random((B, L)) < 0.7
    mask[0, 0] = True
    logits, tensor = both(3 * numbers(seed, B, L, V), dtype)

    def mean(logits):
        total, count = cross_entropy(logits, jnp.asarray(targets), jnp.asarray(mask))
        return total / count

    loss, grad = jax.value_and_grad(mean)(logits)
    ignored = torch.tensor(np.where(mask, targets, -100))
    expected = functional.cross_entropy(tensor.transpose(1, 2), ignored)
    expected.backward()
    check(loss, expected, dtype)
    check(grad, tensor.grad, dtype)
