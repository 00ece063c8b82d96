"""The decoder block and the stacks against PyTorch's own: outputs, every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxformer.config import BlockConfig, TransformerConfig
from jaxformer.layers.blocks import DecoderBlock
from jaxformer.layers.masks import causal_mask, padding_mask
from jaxformer.layers.stacks import Decoder, Encoder
from jaxformer.models.functional import abstract_model, flat_params, merge
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.cases import Case, draw_params
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import as_numpy, relative_error
from parity_tests.dtypes import EACH_DTYPE

B, L, M, D, H = 4, 5, 7, 16, 4
DECODER = {
    "self_attn": "self_attention",
    "multihead_attn": "cross_attention",
    "linear1": "mlp/up",
    "linear2": "mlp/down",
    "norm1": "self_attention_norm",
    "norm2": "cross_attention_norm",
    "norm3": "mlp_norm",
}
ENCODER = {
    "self_attn": "attention",
    "linear1": "mlp/up",
    "linear2": "mlp/down",
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
}
SOURCE_LENGTHS, TARGET_LENGTHS = np.array([[7], [4], [1], [6]]), np.array([[5], [3], [4], [1]])
SOURCE_VALID, TARGET_VALID = np.arange(M) < SOURCE_LENGTHS, np.arange(L) < TARGET_LENGTHS


class Stacks(nnx.Module):
    """What torch.nn.Transformer is: an encoder and a decoder without embeddings."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.encoder, self.decoder = Encoder(config, rngs), Decoder(config, rngs)

    def __call__(self, x, y, source_mask, target_mask):
        return self.decoder(y, self.encoder(x, source_mask), target_mask, source_mask)


@pytest.fixture(params=EACH_DTYPE)
def dtype(request):
    with arithmetic(request.param):
        yield request.param


@pytest.fixture(params=["pre", "post"])
def case(request, dtype) -> Case:
    sizes = {"width": D, "num_heads": H, "mlp_width": 24, "num_layers": 2}
    config = TransformerConfig(
        **sizes, vocab_size=1, context_length=8, norm_placement=request.param
    )
    return Case(config, dtype)


def in_torch_terms(leaves: dict, prefix: str, names: dict[str, str]) -> dict[str, np.ndarray]:
    """A block's leaves by PyTorch's names; query, key and value are one matrix there."""
    found = {}
    for theirs, ours in names.items():
        path = f"{prefix}{ours}"
        if "norm" in theirs:
            found[f"{theirs}.weight"] = leaves[f"{path}/scale"]
            found[f"{theirs}.bias"] = leaves[f"{path}/bias"]
        elif "attn" in theirs:
            for leaf, name in (("kernel", "weight"), ("bias", "bias")):
                parts = [leaves[f"{path}/{part}/{leaf}"].T for part in ("query", "key", "value")]
                found[f"{theirs}.in_proj_{name}"] = np.concatenate(parts)
                found[f"{theirs}.out_proj.{name}"] = leaves[f"{path}/out/{leaf}"].T
        else:
            found[f"{theirs}.weight"] = leaves[f"{path}/kernel"].T
            found[f"{theirs}.bias"] = leaves[f"{path}/bias"]
    return found


def stacks_in_torch_terms(leaves: dict, placement: str) -> dict[str, np.ndarray]:
    found = {}
    for stack, names in (("encoder", ENCODER), ("decoder", DECODER)):
        for i in range(2):
            block = in_torch_terms(leaves, f"{stack}/blocks/{i}/", names)
            found |= {f"{stack}.layers.{i}.{name}": array for name, array in block.items()}
        if placement == "pre":
            found[f"{stack}.norm.weight"] = leaves[f"{stack}/norm/scale"]
            found[f"{stack}.norm.bias"] = leaves[f"{stack}/norm/bias"]
    return found


def filled(module: torch.nn.Module, arrays: dict[str, np.ndarray], case: Case) -> torch.nn.Module:
    module = module.to(case.torch_dtype)
    module.load_state_dict({name: torch.tensor(np.asarray(a)) for name, a in arrays.items()})
    return module


def ours_of(build, case: Case, arrays: list[np.ndarray], masks: list):
    """The parameters, the output, and the gradients of every parameter and input."""
    graphdef, shapes = abstract_model(build, case.model_config)
    params = draw_params(case, shapes)
    weights = case.to_jax(case.normal("weights", B, L, D))

    @jax.jit
    def run(params, inputs):
        out, pullback = jax.vjp(lambda p, x: merge(graphdef, p)(*x, *masks)[0], params, inputs)
        return out, *pullback(weights)

    out, param_grads, input_grads = run(params, [case.to_jax(a) for a in arrays])
    leaves = [
        {path: np.asarray(leaf) for path, leaf in flat_params(tree).items()}
        for tree in (params, param_grads)
    ]
    return leaves[0], out, leaves[1], input_grads


def backward(out: torch.Tensor, case: Case) -> None:
    out.backward(case.to_torch(case.normal("weights", B, L, D)))


def check_all(pairs: dict, bound: float) -> None:
    for name, (a, b) in pairs.items():
        a, b = as_numpy(a), as_numpy(b)
        if name.endswith("in_proj_bias"):
            # A key bias's gradient is truly zero: both sides hold rounding noise there.
            for side in (a, b):
                assert relative_error(side[D : 2 * D], np.zeros(D), true_zero=True) <= bound, name
            a, b = (np.delete(side, slice(D, 2 * D)) for side in (a, b))
        assert relative_error(a, b) <= bound, (name, relative_error(a, b))


MASKS = {
    "none": (False, False, False),
    "padding": (False, True, True),
    "causal and padding": (True, True, True),
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_decoder_block_is_torchs_decoder_layer(case, masks):
    causal, padded, memory_padded = masks
    own = causal_mask(L) if causal else jnp.ones((1, 1, L, L), bool)
    own = own & padding_mask(jnp.asarray(TARGET_VALID)) if padded else own
    across = padding_mask(jnp.asarray(SOURCE_VALID)) if memory_padded else None
    arrays = [case.normal("x", B, L, D), case.normal("memory", B, M, D)]
    params, out, grads, input_grads = ours_of(DecoderBlock, case, arrays, [own, across])

    twin = torch.nn.TransformerDecoderLayer(
        *(D, H, 24, 0.0),
        activation="relu",
        layer_norm_eps=1e-5,
        batch_first=True,
        norm_first=case.config.norm_placement == "pre",
    )
    filled(twin, in_torch_terms(params, "", DECODER), case)
    tensors = [case.to_torch(a).requires_grad_() for a in arrays]
    expected = twin(
        *tensors,
        tgt_mask=torch.ones(L, L, dtype=torch.bool).triu(1) if causal else None,
        tgt_key_padding_mask=torch.tensor(~TARGET_VALID) if padded else None,
        memory_key_padding_mask=torch.tensor(~SOURCE_VALID) if memory_padded else None,
    )
    backward(expected, case)
    pairs = {"output": (out, expected)}
    pairs |= {
        name: (ours, tensor.grad)
        for name, ours, tensor in zip(("x", "memory"), input_grads, tensors, strict=True)
    }
    ours = in_torch_terms(grads, "", DECODER)
    pairs |= {name: (ours[name], p.grad) for name, p in twin.named_parameters()}
    check_all(pairs, BOUNDS["layer", case.dtype])


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_stacks_are_torchs_transformer(case, padded):
    placement = case.config.norm_placement
    own, across = causal_mask(L), None
    if padded:
        own = own & padding_mask(jnp.asarray(TARGET_VALID))
        across = padding_mask(jnp.asarray(SOURCE_VALID))
    arrays = [case.normal("x", B, M, D), case.normal("y", B, L, D)]
    params, out, grads, input_grads = ours_of(Stacks, case, arrays, [across, own])

    options = {"batch_first": True, "norm_first": placement == "pre"}
    layer = torch.nn.TransformerEncoderLayer(D, H, 24, 0.0, **options)
    # By default it adds a final norm to post-norm stacks too, whose blocks have normed already,
    # and skips padding in a form of its own.
    norm = torch.nn.LayerNorm(D) if placement == "pre" else None
    encoder = torch.nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
    twin = torch.nn.Transformer(D, H, 2, 2, 24, 0.0, custom_encoder=encoder, **options)
    twin.decoder.norm = twin.decoder.norm if placement == "pre" else None
    filled(twin, stacks_in_torch_terms(params, placement), case)
    tensors = [case.to_torch(a).requires_grad_() for a in arrays]
    hidden = torch.tensor(~SOURCE_VALID) if padded else None
    expected = twin(
        *tensors,
        tgt_mask=torch.ones(L, L, dtype=torch.bool).triu(1),
        src_key_padding_mask=hidden,
        memory_key_padding_mask=hidden,
        tgt_key_padding_mask=torch.tensor(~TARGET_VALID) if padded else None,
    )
    backward(expected, case)
    pairs = {"output": (out, expected)}
    pairs |= {
        name: (ours, tensor.grad)
        for name, ours, tensor in zip(("source", "target"), input_grads, tensors, strict=True)
    }
    ours = stacks_in_torch_terms(grads, placement)
    pairs |= {name: (ours[name], p.grad) for name, p in twin.named_parameters()}
    check_all(pairs, BOUNDS["model", case.dtype])
