"""The first module at which two models diverge is named: forwards, backwards, in any models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxformer.errors import UserError
from jaxformer.parity import divergence as former
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting import first_divergence
from jaxformer.porting.locate import OUTPUT


@pytest.fixture(autouse=True)
def in_float64():
    with arithmetic("float64"):
        yield


class Net(nnx.Module):
    """Two layers, the second called twice, with arithmetic between them that is no module."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs, param_dtype=jnp.float64)
        self.second = nnx.Linear(4, 4, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x):
        return self.finish(self.second(self.second(self.between(self.first(x)))))

    def between(self, x):
        return 2.0 * x

    def finish(self, x):
        return x + 1.0


class Twin(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 4, dtype=torch.float64)
        self.second = torch.nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x):
        return self.second(self.second(2.0 * self.first(x))) + 1.0


def pair(net_class=Net):
    net, twin = net_class(nnx.Rngs(0)), Twin()
    with torch.no_grad():
        for name in ("first", "second"):
            layer, other = getattr(net, name), getattr(twin, name)
            other.weight.copy_(torch.tensor(np.array(layer.kernel[...]).T))
            other.bias.copy_(torch.tensor(np.array(layer.bias[...])))
    return net, twin


X = np.random.default_rng(0).standard_normal((2, 3))


def divergence(net, twin):
    inputs, bound = ([jnp.asarray(X)], [torch.tensor(X)]), BOUNDS["model", "float64"]
    return first_divergence(net, twin, *inputs, bound, "float64")


def test_the_former_name_is_the_same_function():
    assert former.first_divergence is first_divergence


def test_equal_models_do_not_diverge():
    assert divergence(*pair()) is None


def test_a_module_whose_inputs_agree_is_at_fault():
    net, twin = pair()
    net.second.bias[...] += 1e-9
    found = divergence(net, twin)
    assert (found.layer, found.quantity) == ("second", "output")
    wrong = {row.path for row in found.rows if not row.ok}
    assert "second#2" in wrong
    assert "first" not in {row.path for row in found.rows if row.quantity == "output"} & wrong


def test_what_is_no_module_is_named_by_the_first_module_that_reads_it():
    class Wrong(Net):
        def between(self, x):
            return 2.001 * x

    assert divergence(*pair(Wrong)).layer == "second"


def test_what_follows_the_last_module_is_the_output():
    class Wrong(Net):
        def finish(self, x):
            return x + 1.001

    assert divergence(*pair(Wrong)).layer == OUTPUT


def test_a_module_that_is_not_called_is_at_fault():
    class Wrong(Net):
        def __call__(self, x):
            return self.finish(self.second(self.between(self.first(x))))

    assert divergence(*pair(Wrong)).layer == "second"


def test_a_wrong_gradient_is_found_although_all_outputs_agree():
    class Stopped(nnx.Linear):
        def __call__(self, x):
            return jax.lax.stop_gradient(super().__call__(x))

    net, twin = pair()
    net.first.__class__ = Stopped
    found = divergence(net, twin)
    assert (found.layer, found.quantity) == ("first", "input_grad")
    assert all(row.ok for row in found.rows if row.quantity == "output")


def test_neither_model_is_changed():
    net, twin = pair()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(net)))
    call = Net.__call__
    divergence(net, twin)
    after = nnx.to_pure_dict(nnx.state(net))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert Net.__call__ is call
    assert all(p.grad is None for p in twin.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())


def test_modules_that_only_one_side_has_are_skipped():
    class Wrapped(Twin):
        def __init__(self):
            super().__init__()
            self.activation = torch.nn.Identity()

        def forward(self, x):
            return self.activation(super().forward(x))

    net, twin = pair()
    wrapped = Wrapped()
    wrapped.load_state_dict(twin.state_dict())
    assert divergence(net, wrapped) is None


@pytest.mark.parametrize("transform", [nnx.jit, jax.jit, jax.checkpoint])
def test_a_module_inside_a_transformation_is_refused(transform):
    class Hidden(Net):
        def __call__(self, x):
            if transform is nnx.jit:
                return transform(lambda module, x: module(x))(self.first, x)
            return transform(lambda x: self.first(x))(x)

    with pytest.raises(UserError, match="compare the model with that turned off"):
        divergence(*pair(Hidden))
