"""Import and export against the tools that the models come from, case by case; docs/models.md.

    python -m benchmarks.exchange            # all cases, a minute or two; writes the table

A case is a model of random weights and odd sizes that its own tool has saved. It is imported, runs
in float64 beside its own tool, and is exported again. `parity_tests/test_exchange.py` asserts the
bounds of `jaxformer/parity/bounds.py` for the same cases.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from torch.nn import functional

from jaxformer.atomic import atomic_write
from jaxformer.exchange.exporting import DType, export_huggingface
from jaxformer.exchange.foreign import Options
from jaxformer.exchange.importing import import_model
from jaxformer.layers.masks import CAUSAL, padding_mask
from jaxformer.layers.positions import sinusoidal_positions
from jaxformer.layers.rotary import rotation
from jaxformer.models.functional import flat_params, merge
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import ZERO_GRADIENT, relative_error
from jaxformer.run.load import load_run
from jaxformer.training.loss import cross_entropy
from jaxformer.weights.convert import from_torch
from jaxformer.weights.files import load_tensors, save_tensors
from jaxformer.weights.huggingface import FAMILIES
from parity_tests.huggingface import wide

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- exchange -->\n", "<!-- end -->"
V, T, D, H, F, N = 53, 13, 24, 3, 41, 2
"""Sizes of every case but those that a case changes."""
GREEDY = 5
"""Tokens that both sides add to a text."""

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and how its own tool, or an older one, has saved it."""

    family: str
    what: str
    """The form, in words."""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the settings of the family's config."""
    dtype: DType = "float32"
    """Of the saved tensors."""
    saved: Callable[[Tensors], Tensors] = lambda tensors: tensors
    """The names of the file, given those that transformers writes."""
    shards: bool = False
    """Whether the model is in several files with an index."""

    @property
    def name(self) -> str:
        return f"{self.family}, {self.what}"


def _without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def _with_old_buffers(tensors: Tensors) -> Tensors:
    """What files of earlier versions hold beside: causal masks, and the embedding a second time."""
    mask = np.tril(np.ones((1, 1, T, T), np.float32))
    more: Tensors = {"lm_head.weight": tensors["transformer.wte.weight"]}
    for layer in range(N):
        more[f"transformer.h.{layer}.attn.bias"] = mask
        more[f"transformer.h.{layer}.attn.masked_bias"] = np.float32(-1e4)
    return tensors | more


def _prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def _of_first_release(tensors: Tensors) -> Tensors:
    """BERT's norms as gamma and beta, its head's decoder, its pooler, its buffer of positions."""
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    return renamed | {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "bert.pooler.dense.weight": np.ones((D, D), np.float32),
        "bert.pooler.dense.bias": np.ones(D, np.float32),
        "cls.seq_relationship.weight": np.ones((2, D), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
        "bert.embeddings.position_ids": np.arange(T)[None],
    }


def _with_duplicates(tensors: Tensors) -> Tensors:
    """Marian's embedding by all its names, and its tables of sinusoids."""
    shared = tensors["model.shared.weight"]
    names = "lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens"
    sinusoids = np.zeros((T, D), np.float32)
    return (
        tensors
        | {f"{name}.weight": shared for name in names}
        | {f"model.{side}.embed_positions.weight": sinusoids for side in ("encoder", "decoder")}
    )


def _with_a_head(tensors: Tensors) -> Tensors:
    """The embedding a second time, and the buffers of older files."""
    more: Tensors = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    for layer in range(N):
        more[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    return tensors | more


LLAMA3 = {
    "rope_theta": 5e5,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {
    "rope_theta": 1e6,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 8,
}
CASES = (
    Case("gpt2", "tied, without prefix", saved=_without_prefix),
    Case("gpt2", "tied twice, with masks", saved=_with_old_buffers, dtype="float16"),
    Case("gpt2", "exact GELU, in shards", {"activation_function": "gelu"}, shards=True),
    Case("gpt2", "ReLU, of torch.compile", {"activation_function": "relu"}, "bfloat16",
         _prefixed("_orig_mod.")),
    Case("gpt2", "F = 4D, other epsilon", {"n_inner": None, "layer_norm_epsilon": 1e-3}),
    Case("bert", "tied"),
    Case("bert", "of the first release", saved=_of_first_release),
    Case("bert", "tanh GELU, in shards", {"hidden_act": "gelu_new", "type_vocab_size": 3},
         "bfloat16", shards=True),
    Case("bert", "ReLU, of a wrapped model", {"hidden_act": "relu"}, "float16",
         _prefixed("module.")),
    Case("marian", "tied"),
    Case("marian", "tied four times, with sinusoids", saved=_with_duplicates, dtype="float16"),
    Case("marian", "exact GELU, in shards", {"activation_function": "gelu"}, "bfloat16",
         shards=True),
    Case("llama", "untied, Llama 3 scaling", {"rope_parameters": LLAMA3}),
    Case("llama", "tied, biases, in shards", {"tie_word_embeddings": True, "attention_bias": True,
         "mlp_bias": True, "head_dim": None}, "bfloat16", shards=True),
    Case("llama", "tied twice, linear scaling", {"tie_word_embeddings": True, "rope_parameters":
         {"rope_theta": 5e5, "rope_type": "linear", "factor": 3.0}}, "float16", _with_a_head),
    Case("llama", "dynamic scaling", {"rope_parameters":
         {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 3.0}}),
    Case("mistral", "untied, sliding window", {"sliding_window": 5, "num_key_value_heads": 1}),
    Case("mistral", "tied, no window", {"sliding_window": None, "tie_word_embeddings": True},
         "bfloat16"),
    Case("qwen2", "tied", {"tie_word_embeddings": True}, "bfloat16"),
    Case("qwen2", "untied, of a wrapped model", saved=_prefixed("module.")),
    Case("qwen3", "untied, YaRN", {"rope_parameters": YARN}),
    Case("qwen3", "tied, biases", {"tie_word_embeddings": True, "attention_bias": True},
         "float16"),
)  # fmt: skip
QUICK = (
    "gpt2, tied, without prefix",
    "bert, tied",
    "marian, tied",
    "llama, untied, Llama 3 scaling",
    "qwen3, tied, biases",
)
"""The cases that every run of the tests has, one per family."""


def make_model(case: Case) -> Any:
    """The model of a case, of random weights."""
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    makers = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**{
            "vocab_size": V, "n_positions": T, "n_embd": D, "n_layer": N, "n_head": H,
            "n_inner": F, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0,
            **off, **case.changes,
        })),
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**{
            "vocab_size": V, "max_position_embeddings": T, "hidden_size": D,
            "num_hidden_layers": N, "num_attention_heads": H, "intermediate_size": F,
            "initializer_range": 0.3, "hidden_dropout_prob": 0.0, "pad_token_id": None,
            "attention_probs_dropout_prob": 0.0, **case.changes,
        })),
        "marian": lambda: transformers.MarianMTModel(transformers.MarianConfig(**{
            "vocab_size": V, "max_position_embeddings": T, "d_model": D, "encoder_layers": N,
            "decoder_layers": N, "encoder_attention_heads": H, "decoder_attention_heads": H,
            "encoder_ffn_dim": F, "decoder_ffn_dim": F, "init_std": 0.2, "dropout": 0.0,
            "scale_embedding": True, "activation_function": "relu", "pad_token_id": V - 1,
            "decoder_start_token_id": V - 1, "eos_token_id": 0, "forced_eos_token_id": 0,
            **case.changes,
        })),
    }  # fmt: skip
    torch.manual_seed(0)
    model = makers.get(case.family, lambda: _decoder_model(case))()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # no bias stays zero, no scale one
                parameter += 0.1 * torch.randn_like(parameter)
    return model.to(getattr(torch, case.dtype)).eval()


def _decoder_model(case: Case) -> Any:
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    config = getattr(transformers, f"{names[case.family]}Config")(**{
        "vocab_size": V, "max_position_embeddings": T, "hidden_size": D, "intermediate_size": F,
        "num_hidden_layers": N, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None,
        **case.changes,
    })  # fmt: skip
    return getattr(transformers, f"{names[case.family]}ForCausalLM")(config)


def save_model(case: Case, model: Any, directory: Path) -> None:
    """Write the directory as the case has it."""
    model.save_pretrained(directory, max_shard_size="9KB" if case.shards else "50GB")
    path = directory / "model.safetensors"
    if path.is_file():
        save_tensors(case.saved(load_tensors(path)), path, {"format": "pt"})


def measure(case: Case, place: Path) -> dict[str, Any]:
    """Import, run beside the model's own tool in float64, export; the errors and what is equal."""
    directory, run_dir = place / "model", place / "run"
    model = make_model(case)
    save_model(case, model, directory)
    options = Options(tokenizer="ids", mask_token=3, dtype="float64")
    import_model(directory, run_dir, options)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run, theirs = load_run(run_dir), _in_float64(model, own)
    if case.family == "marian":  # its sinusoids are float32 in a model of any type
        table = sinusoidal_positions(T, D)
        halves = np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1)
        for side in (theirs.model.encoder, theirs.model.decoder):
            side.embed_positions.weight.data.copy_(torch.tensor(halves))
    with wide():
        figures = _SIDES.get(case.family, _decoder)(run, theirs, case.family)
    export_huggingface(run, place / "out", case.dtype, verify=False)
    figures["round_trip"] = _holds(place / "out", own)
    return figures


def _in_float64(model: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The model with these tensors; what it computes when it is built is in float64 too."""
    with wide():
        built = type(model)(model.config).double().eval()
    built.load_state_dict({name: tensor.double() for name, tensor in tensors.items()})
    return built


def _holds(exported: Path, own: Mapping[str, torch.Tensor]) -> bool:
    """Whether transformers finds these bits in a directory, and no name too many or too few."""
    config = transformers.AutoConfig.from_pretrained(exported)
    loader = getattr(transformers, config.architectures[0])
    model, found = loader.from_pretrained(exported, output_loading_info=True)
    there = model.state_dict()
    return (
        not any(found.values())
        and there.keys() == own.keys()
        and all(
            torch.equal(tensor, there[name])
            for name, tensor in own.items()
            if "embed_positions" not in name  # computed, and no part of a file
        )
    )


def _errors(
    run: Any,
    theirs: Any,
    table: Any,
    loss_of: Callable[[Any], tuple[Any, Any]],
    their_loss: Any,
    their_logits: Any,
) -> dict[str, Any]:
    """Relative errors of logits, loss and the worst gradient."""
    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(run.params)
    their_loss.backward()
    expected = {
        name: parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    expected = flat_params(from_torch(expected, table, run.params))
    return {
        "logits": relative_error(logits, their_logits),
        "loss": relative_error(loss, their_loss),
        "gradients": max(
            relative_error(grad, expected[path], path.endswith(ZERO_GRADIENT))
            for path, grad in flat_params(grads).items()
        ),
    }


def _worst(ours: list[Any], theirs: Any) -> float:
    """The largest error of hidden states, as many as there are."""
    return max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True))


def _gpt(run: Any, theirs: Any, _: str) -> dict[str, Any]:
    model = merge(run.graphdef, run.params)

    def states(tokens: Any) -> list[Any]:
        x = model.embed(tokens) + model.positions(jnp.arange(T)[None])
        hidden = [x]
        for block in model.blocks:
            x, _ = block(x, CAUSAL)
            hidden.append(x)
        return [*hidden[:-1], model.norm(x)]  # as transformers has the last

    return _causal(run, theirs, FAMILIES["gpt2"].table, states)


def _decoder(run: Any, theirs: Any, family: str) -> dict[str, Any]:
    model, config = merge(run.graphdef, run.params), run.config.model

    def states(tokens: Any) -> list[Any]:
        positions = jnp.arange(T)[None]
        x, mask = model.embed_tokens(tokens), model.seen(positions, None)
        hidden = [x]
        for block in model.blocks:
            x, _ = block(x, rotation(positions, config), mask)
            hidden.append(x)
        return [*hidden[:-1], model.norm(x)]

    return _causal(run, theirs, FAMILIES[family].table_of(config), states)


def _causal(
    run: Any, theirs: Any, table: Any, states: Callable[[Any], list[Any]]
) -> dict[str, Any]:
    tokens = np.random.default_rng(0).integers(0, V, (3, T))
    out = theirs(torch.tensor(tokens), output_hidden_states=True)

    def loss_of(params: Any) -> tuple[Any, Any]:
        logits = merge(run.graphdef, params)(jnp.asarray(tokens))
        mask = jnp.ones(tokens[:, 1:].shape, bool)
        total, count = cross_entropy(logits[:, :-1], jnp.asarray(tokens[:, 1:]), mask)
        return total / count, logits

    their_loss = functional.cross_entropy(out.logits[:, :-1].mT, torch.tensor(tokens[:, 1:]))
    text, more = tokens[0, :4], run_greedy(run, tokens[0, :4])
    for _ in range(GREEDY):
        next_token = theirs(torch.tensor(text)[None]).logits[0, -1].argmax().item()
        text = np.append(text, next_token)
    return {
        **_errors(run, theirs, table, loss_of, their_loss, out.logits),
        "hidden": _worst(states(jnp.asarray(tokens)), out.hidden_states),
        "greedy": text[4:].tolist() == more,
    }


def run_greedy(run: Any, prompt: Any) -> list[int]:
    """The tokens that a GPT's run adds, with its caches."""
    from jaxformer.config import SamplingConfig
    from jaxformer.decoding.generate import generate

    greedy = SamplingConfig(temperature=0.0)
    model = run.config.model
    steps = generate(
        run.graphdef, run.params, model, [prompt], max_new_tokens=GREEDY, sampling=greedy
    )
    return [int(token) for (token,) in steps]


def _bert(run: Any, theirs: Any, _: str) -> dict[str, Any]:
    rng, shape = np.random.default_rng(0), (4, T)
    tokens, targets = rng.integers(0, V, (2, *shape))
    segments = np.sort(rng.integers(0, run.config.model.num_segments, shape), axis=1)
    valid = np.arange(T) < [[T], [T - 3], [2], [5]]
    asked = valid & (rng.random(shape) < 0.5)
    out = theirs(
        torch.tensor(tokens),
        attention_mask=torch.tensor(valid).long(),
        token_type_ids=torch.tensor(segments),
        output_hidden_states=True,
    )

    def loss_of(params: Any) -> tuple[Any, Any]:
        args = map(jnp.asarray, (tokens, segments, valid))
        logits = merge(run.graphdef, params)(*args)
        total, count = cross_entropy(logits, jnp.asarray(targets), jnp.asarray(asked))
        return total / count, logits[valid]

    their_loss = functional.cross_entropy(out.logits[asked], torch.tensor(targets)[asked])
    model = merge(run.graphdef, run.params)
    x = model.embeddings(jnp.asarray(tokens), jnp.asarray(segments))
    hidden = [x]
    for block in model.encoder.blocks:
        x, _ = block(x, padding_mask(jnp.asarray(valid)))
        hidden.append(x)
    ours = model(*map(jnp.asarray, (tokens, segments, valid)))
    same = np.argmax(ours, -1) == out.logits.argmax(-1).numpy()
    table = FAMILIES["bert"].table
    return {
        **_errors(run, theirs, table, loss_of, their_loss, out.logits[torch.tensor(valid)]),
        "hidden": _worst([h[valid] for h in hidden], [h[valid] for h in out.hidden_states]),
        "greedy": bool(same[valid].all()),
    }


def _marian(run: Any, theirs: Any, _: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    # transformers stops the gradient of the padding token's embedding: no text contains it.
    source, target = (rng.integers(0, V - 1, (3, length)) for length in (9, 6))
    valid = np.arange(9) < [[9], [5], [1]]
    weights = rng.standard_normal((3, 6, V))
    out = theirs(
        torch.tensor(source),
        attention_mask=torch.tensor(valid).long(),
        decoder_input_ids=torch.tensor(target),
        output_hidden_states=True,
    )

    def loss_of(params: Any) -> tuple[Any, Any]:
        args = map(jnp.asarray, (source, target, valid))
        logits = merge(run.graphdef, params)(*args)
        return (logits * weights).sum(), logits

    their_loss = (out.logits * torch.tensor(weights)).sum()
    order = np.concatenate([np.arange(0, D, 2), np.arange(1, D, 2)])  # sinusoids in halves
    model, mask = merge(run.graphdef, run.params), padding_mask(jnp.asarray(valid))
    x = model.embed_tokens(model.embed, jnp.asarray(source), jnp.arange(9)[None])
    memory = [x]
    for block in model.encoder.blocks:
        x, _ = block(x, mask)
        memory.append(x)
    y = model.embed_tokens(model.embed, jnp.asarray(target), jnp.arange(6)[None])
    hidden = [y]
    for block in model.decoder.blocks:
        y, _ = block(y, x, CAUSAL, mask)
        hidden.append(y)
    pairs = [(memory, out.encoder_hidden_states, valid)]
    pairs += [(hidden, out.decoder_hidden_states, np.ones((3, 6), bool))]
    worst = max(
        _worst([h[..., order][where] for h in ours], [h[where] for h in found])
        for ours, found, where in pairs
    )
    [[_, [best]]] = run.hypotheses([source[0]], _greedy_search())
    text = [run.specials.start]
    while len(text) <= len(best.tokens):
        logits = theirs(torch.tensor(source[:1]), decoder_input_ids=torch.tensor([text])).logits
        logits[0, -1, run.specials.padding] = -torch.inf
        text.append(logits[0, -1].argmax().item())
    table = FAMILIES["marian"].table
    return {
        **_errors(run, theirs, table, loss_of, their_loss, out.logits),
        "hidden": worst,
        "greedy": text[1:] == best.tokens.tolist(),
    }


def _greedy_search() -> Any:
    from jaxformer.config import BeamConfig

    return BeamConfig(beam=1, n_best=1)


_SIDES = {"gpt2": _gpt, "bert": _bert, "marian": _marian}


def table(rows: list[tuple[Case, dict[str, Any]]]) -> str:
    """The table of the document."""
    lines = [
        "| model | saved as | logits | hidden states | loss | gradients | likeliest tokens | "
        "exported again |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, found in rows:
        errors = (f"{found[key]:.0e}" for key in ("logits", "hidden", "loss", "gradients"))
        equal = "equal" if found["greedy"] else "DIFFERENT"
        again = "same bits" if found["round_trip"] else "DIFFERENT"
        cells = [case.name, case.dtype, *errors, equal, again]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every case and write the table."""
    rows = []
    for case in CASES:
        with arithmetic("float64"), tempfile.TemporaryDirectory() as place:
            rows.append((case, measure(case, Path(place))))
            print(case.name, json.dumps(rows[-1][1]), flush=True)
    text = DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    with atomic_write(DOCUMENT) as file:
        file.write((head + BEGIN + table(rows) + END + rest.partition(END)[2]).encode())


if __name__ == "__main__":
    main()
