"""One train step of the same model by everybody: the sides of benchmarks that train.

Forward, backward, clipping to 1, AdamW with decay on matrices (fused in PyTorch), with the same
weights and tokens and without dropout. A repetition takes `steps` steps and waits for the last one;
the first one's loss is what all sides must agree in. In bfloat16 PyTorch computes under autocast.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.side import Done, Work
from benchmarks.weights import MODELS, draw, tensors, tokens
from jaxformer.batch import Batch, PairBatch, SpecialTokens
from jaxformer.config import (
    CopyConfig,
    CopyTranslationConfig,
    GPTConfig,
    LanguageConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from jaxformer.runtime.memory import keep_freed_memory
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.language_modeling import language_spec
from jaxformer.tasks.program import build
from jaxformer.tasks.task import TrainSpec
from jaxformer.tasks.translation import translation_spec
from jaxformer.weights.families import gpt2, marian
from jaxformer.weights.twin import TWIN

OPTIMIZER = OptimizerConfig(
    peak_learning_rate=6e-4,
    floor_learning_rate=6e-4,
    warmup_steps=0,
    beta2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
)
"""With a constant learning rate, so that all sides stay equal from step to step."""
SMOOTHING = 0.1


def run_config(model: str, config: ModelConfig, batch_size: int, length: int) -> RunConfig:
    """The run whose train step is measured."""
    if isinstance(config, GPTConfig):
        return LanguageConfig(
            model=dataclasses.replace(config, context_length=length),
            optimizer=OPTIMIZER,
            batch_size=batch_size,
        )
    return CopyTranslationConfig(
        model=config, data=CopyConfig(max_length=length - 1), batch_size=batch_size
    )


def spec_of(config: RunConfig) -> TrainSpec:
    """Model, objective and optimizer of the run."""
    if isinstance(config, LanguageConfig):
        return language_spec(config)
    assert isinstance(config, CopyTranslationConfig)
    return translation_spec(config, SpecialTokens.after(config.model.vocab_size - 3))


def batch_of(config: RunConfig, batch_size: int, length: int) -> Any:
    """Random tokens without padding, in int32."""
    drawn = tokens(config.model, batch_size, length + 1).astype(np.int32)
    inputs, targets, mask = drawn[:, :-1], drawn[:, 1:], np.ones((batch_size, length), bool)
    if isinstance(config, LanguageConfig):
        return Batch(inputs, targets, mask)
    source = tokens(config.model, batch_size, length, seed=1).astype(np.int32)
    return PairBatch(source, mask, inputs, targets, mask)


def jaxformer(
    model: str, config: dict[str, Any], batch_size: int, length: int, steps: int, **_: Any
) -> Work:
    """The train step of a run on one device."""
    keep_freed_memory()  # as a run does
    run = run_config(model, MODELS[model][0](**config), batch_size, length)
    program = build(spec_of(run), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    state = program.state_of(draw(model, run.model))
    batch = jax.device_put(batch_of(run, batch_size, length), program.rows)

    def work() -> Done:
        nonlocal state
        losses = []
        for _ in range(steps):
            state, metrics = program.train_step(state, batch)
            losses.append(metrics.loss)
        jax.block_until_ready(state)
        return Done([float(losses[0])], count=steps)

    return work


def twin(
    model: str, config: dict[str, Any], batch_size: int, length: int, steps: int, **_: Any
) -> Work:
    """The PyTorch twin, eager, on the CPU."""
    from jaxformer.parity.engine.model_pair import twin_config
    from torchref.models.gpt import GPT
    from torchref.models.transformer import Transformer

    run = run_config(model, MODELS[model][0](**config), batch_size, length)
    module = {"gpt": GPT, "transformer": Transformer}[model](twin_config(run.model))
    load(module, tensors(model, run.model, TWIN))

    def logits(forward: Any, batch: Any) -> Any:
        if model == "gpt":
            return forward(batch.inputs)
        return forward(batch.source, batch.inputs, batch.source_valid, batch.mask)

    return torch_steps(module, logits, run, batch_size, length, steps)


def transformers(
    model: str,
    config: dict[str, Any],
    batch_size: int,
    length: int,
    steps: int,
    compiled: bool = False,
    device: str = "cpu",
) -> Work:
    """transformers' GPT-2 or Marian with PyTorch's scaled_dot_product_attention."""
    run = run_config(model, MODELS[model][0](**config), batch_size, length)
    module: Any = (gpt2_model if model == "gpt" else marian_model)(run.model)

    def logits(forward: Any, batch: Any) -> Any:
        read = {"input_ids": batch.inputs}
        if model == "transformer":
            read = {"input_ids": batch.source, "decoder_input_ids": batch.inputs}
        return forward(**read, use_cache=False).logits

    return torch_steps(module, logits, run, batch_size, length, steps, compiled, device)


def nanogpt(
    model: str,
    config: dict[str, Any],
    batch_size: int,
    length: int,
    steps: int,
    path: str,
    compiled: bool = False,
    device: str = "cpu",
) -> Work:
    """A user's checkout of nanoGPT, with its own model and its own optimizer."""
    import torch

    sys.path.insert(0, str(Path(path).resolve()))
    from model import GPT as NanoGPT  # type: ignore[import-not-found]
    from model import GPTConfig as NanoConfig

    run = run_config(model, GPTConfig(**config), batch_size, length)
    sizes = run.model
    module = NanoGPT(
        NanoConfig(
            block_size=sizes.context_length,
            vocab_size=sizes.vocab_size,
            n_layer=sizes.num_layers,
            n_head=sizes.num_heads,
            n_embd=sizes.width,
            dropout=0.0,
            bias=True,
        )
    )
    # Its linear layers hold (out, in), the published file and ours (in, out).
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    named = tensors(model, sizes, gpt2.HUGGING_FACE)
    load(module, {name: x.T if name.endswith(conv1d) else x for name, x in named.items()})
    optimizer = module.to(device).configure_optimizers(
        OPTIMIZER.weight_decay,
        OPTIMIZER.peak_learning_rate,
        (OPTIMIZER.beta1, OPTIMIZER.beta2),
        torch.device(device).type,
    )

    def logits(forward: Any, batch: Any) -> Any:
        return forward(batch.inputs, batch.targets)[0]

    return torch_steps(module, logits, run, batch_size, length, steps, compiled, device, optimizer)


def load(module: Any, arrays: dict[str, np.ndarray]) -> None:
    """Give a module all its parameters; buffers and tied weights follow.

    Raises:
        ValueError: it has a parameter that is not among them, or one of them too few.
    """
    import torch

    state = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    parameters = {name for name, p in module.named_parameters() if p.requires_grad}
    if wrong := [*unexpected, *(name for name in missing if name in parameters)]:
        raise ValueError(f"not a model of these weights: {', '.join(wrong[:3])}")


def gpt2_model(config: GPTConfig) -> Any:
    """transformers' GPT-2 with the weights of all sides."""
    from transformers import GPT2Config, GPT2LMHeadModel

    module = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.width,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.mlp_width,
            activation_function={"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=config.vocab_size - 1,
            eos_token_id=config.vocab_size - 1,
            attn_implementation="sdpa",
        )
    )
    load(module, tensors("gpt", config, gpt2.HUGGING_FACE))
    return module


def marian_model(config: ModelConfig) -> Any:
    """transformers' Marian, the Transformer of 2017, with the weights of all sides."""
    from transformers import MarianConfig, MarianMTModel

    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", config.num_layers),
            ("attention_heads", config.num_heads),
            ("ffn_dim", config.mlp_width),
        )
    }
    module = MarianMTModel(
        MarianConfig(
            **sizes,
            vocab_size=config.vocab_size,
            d_model=config.width,
            max_position_embeddings=config.context_length,
            activation_function=config.activation,
            scale_embedding=True,
            dropout=0.0,
            pad_token_id=config.vocab_size - 3,
            decoder_start_token_id=config.vocab_size - 2,
            eos_token_id=config.vocab_size - 1,
            forced_eos_token_id=None,
            attn_implementation="sdpa",
        )
    )
    load(module, tensors("transformer", config, marian.HUGGING_FACE))
    return module


def torch_batch(run: RunConfig, batch_size: int, length: int, device: str) -> Any:
    """The batch of all sides in PyTorch."""
    import torch

    batch = batch_of(run, batch_size, length)
    return type(batch)(*(torch.tensor(x, device=device).to(_wide(x)) for x in batch))


def _wide(array: np.ndarray) -> Any:
    import torch

    return torch.bool if array.dtype == bool else torch.long


def torch_steps(
    module: Any,
    logits: Callable[[Any, Any], Any],
    run: RunConfig,
    batch_size: int,
    length: int,
    steps: int,
    compiled: bool = False,
    device: str = "cpu",
    optimizer: Any = None,
) -> Work:
    """A PyTorch loop around `logits` of the module, compiled or not, and the batch of all sides."""
    import torch
    from torch.nn import functional

    module, batch = module.to(device), torch_batch(run, batch_size, length, device)
    forward = torch.compile(module) if compiled else module
    matrices = [p for p in module.parameters() if p.ndim >= 2 and p.requires_grad]
    vectors = [p for p in module.parameters() if p.ndim < 2 and p.requires_grad]
    is_gpt = isinstance(run, LanguageConfig)
    decay = OPTIMIZER.weight_decay if is_gpt else 0.0
    optimizer = optimizer or torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=OPTIMIZER.peak_learning_rate,
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        fused=True,
    )
    device = batch.targets.device.type
    autocast = torch.autocast(device, torch.bfloat16, enabled=run.model.dtype == "bfloat16")
    smoothing = 0.0 if is_gpt else SMOOTHING
    module.train()

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            out = logits(forward, batch)
            loss = functional.cross_entropy(
                out.flatten(0, 1), batch.targets.flatten(), label_smoothing=smoothing
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        return loss.detach()

    def work() -> Done:
        losses = [step() for _ in range(steps)]
        if device == "cuda":
            torch.cuda.synchronize()
        return Done([float(losses[0])], count=steps)

    return work
