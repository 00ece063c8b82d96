"""Other tools' models in and out: beside transformers and nanoGPT, within the bounds, and refused.

The cases and what is measured are those of `benchmarks/exchange.py`, which makes the table of
docs/models.md of them.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from benchmarks.exchange import CASES, QUICK, measure
from jaxformer.cli.main import main
from jaxformer.exchange.foreign import Options
from jaxformer.exchange.importing import import_model
from jaxformer.models.functional import merge
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import relative_error
from jaxformer.run.load import load_run
from tests.nanogpt import model as nanogpt


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_an_imported_model_is_the_same_in_float64_and_goes_out_as_it_was(case, tmp_path):
    with arithmetic("float64"):
        found = measure(case, tmp_path)
    for quantity in ("logits", "hidden", "loss", "gradients"):
        assert found[quantity] <= BOUNDS["model", "float64"], quantity
    assert found["greedy"]
    assert found["round_trip"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[nanogpt.GPT, Path]:
    """A model of nanoGPT and its ckpt.pt, as torch.compile names its tensors."""
    torch.manual_seed(0)
    sizes = {"block_size": 13, "vocab_size": 53, "n_layer": 2, "n_head": 3, "n_embd": 24}
    model = nanogpt.GPT(nanogpt.GPTConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    path = tmp_path_factory.mktemp("nanogpt") / "ckpt.pt"
    sizes |= {"dropout": 0.1, "bias": True}
    torch.save({"model": tensors, "model_args": sizes, "iter_num": 7, "config": {}}, path)
    return model, path


def test_a_checkpoint_of_nanogpt_is_the_same_function(checkpoint, tmp_path):
    model, path = checkpoint
    with arithmetic("float64"):
        import_model(path, tmp_path / "run", Options(tokenizer="ids", dtype="float64"))
        run = load_run(tmp_path / "run")
        tokens = np.random.default_rng(0).integers(0, 53, (2, 13))
        logits = merge(run.graphdef, run.params)(jax.numpy.asarray(tokens))
        theirs, _ = model.double()(torch.tensor(tokens), torch.tensor(tokens))
        model.float()
        assert relative_error(logits, theirs) <= BOUNDS["model", "float64"]


def test_a_checkpoint_that_is_more_than_tensors_is_never_unpickled(checkpoint, tmp_path, capsys):
    class Fault:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "unpickled",)

    content = torch.load(checkpoint[1], weights_only=True)
    torch.save(content | {"config": Fault()}, tmp_path / "ckpt.pt")
    with pytest.raises(SystemExit) as stop:
        main(["import", str(tmp_path / "ckpt.pt"), str(tmp_path / "run"), "--tokenizer", "ids"])
    assert stop.value.code == 2
    assert "no checkpoint of tensors and numbers alone" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]
