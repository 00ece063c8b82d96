"""A variational autoencoder with its loss, the noise given; a port in NNX, channels last."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

LATENT = 5


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 6, 4, 2, 1), nn.GroupNorm(3, 6)
        self.conv2, self.norm2 = nn.Conv2d(6, 9, 4, 2, 1), nn.GroupNorm(3, 9)
        self.act, self.moments = nn.Softplus(), nn.Linear(9 * 3 * 4, 2 * LATENT)

    def forward(self, x):
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        return self.moments(x.flatten(1)).chunk(2, dim=1)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(LATENT, 9 * 3 * 4)
        self.up1, self.norm1 = nn.ConvTranspose2d(9, 6, 4, 2, 1), nn.GroupNorm(2, 6)
        self.act, self.up2 = nn.ELU(), nn.ConvTranspose2d(6, 1, 4, 2, 1)

    def forward(self, z):
        x = self.act(self.fc(z).unflatten(1, (9, 3, 4)))
        return torch.sigmoid(self.up2(self.act(self.norm1(self.up1(x)))))


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, x, noise):
        mean, log_var = self.encoder(x)
        image = self.decoder(mean + noise * (0.5 * log_var).exp())
        error = F.mse_loss(image, x, reduction="sum") / len(x)
        kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
        return image, error + 0.1 * kl


def torch_model() -> nn.Module:
    return draw(VAE())


def inputs() -> Any:
    rng = np.random.default_rng(0)
    x = rng.random((3, 1, 12, 16)).astype(np.float32)
    noise = rng.standard_normal((3, LATENT)).astype(np.float32)
    return {"torch": (x, noise), "jax": (x.transpose(0, 2, 3, 1), noise)}


class Down(nnx.Module):
    def __init__(self, rngs, groups):
        conv = partial(nnx.Conv, kernel_size=(4, 4), strides=2, padding=1, rngs=rngs)
        norm = partial(nnx.GroupNorm, epsilon=1e-5, rngs=rngs)
        self.c1, self.g1 = conv(1, 6), norm(6, num_groups=groups[0])
        self.c2, self.g2 = conv(6, 9), norm(9, num_groups=groups[1])
        self.to_mean = nnx.Linear(108, LATENT, rngs=rngs)
        self.to_log_var = nnx.Linear(108, LATENT, rngs=rngs)

    def __call__(self, x):
        x = nnx.softplus(self.g1(self.c1(x)))
        x = nnx.softplus(self.g2(self.c2(x))).reshape(len(x), -1)
        return self.to_mean(x), self.to_log_var(x)


class Up(nnx.Module):
    """Transposed convolutions as convolutions of a spread image."""

    def __init__(self, rngs, act, out):
        self.fc = nnx.Linear(LATENT, 108, rngs=rngs)
        self.k1, self.b1 = nnx.Param(jnp.zeros((4, 4, 9, 6))), nnx.Param(jnp.zeros(6))
        self.k2, self.b2 = nnx.Param(jnp.zeros((4, 4, 6, 1))), nnx.Param(jnp.zeros(1))
        self.g1 = nnx.GroupNorm(6, num_groups=2, epsilon=1e-5, rngs=rngs)
        self.act, self.out = act, out

    def grow(self, x, kernel, bias):
        y = jax.lax.conv_general_dilated(
            x,
            kernel[...],
            (1, 1),
            ((2, 2), (2, 2)),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias[...]

    def __call__(self, z):
        x = self.act(self.fc(z)).reshape(len(z), 3, 4, 9)
        x = self.act(self.g1(self.grow(x, self.k1, self.b1)))
        return self.out(self.grow(x, self.k2, self.b2))


def deviation(log_var):
    return jnp.exp(log_var / 2)


class Autoencoder(nnx.Module):
    def __init__(
        self,
        rngs,
        spread=deviation,
        groups=(3, 3),
        act=nnx.elu,
        out=nnx.sigmoid,
        weight=0.1,
        stop=False,
        average=False,
    ):
        self.down, self.up = Down(rngs, groups), Up(rngs, act, out)
        self.spread, self.weight, self.stop, self.average = spread, weight, stop, average

    def __call__(self, x, noise):
        mean, log_var = self.down(x)
        z = mean + noise * self.spread(log_var)
        image = self.up(jax.lax.stop_gradient(z) if self.stop else z)
        error = jnp.square(image - x)
        error = error.mean() if self.average else error.sum((1, 2, 3)).mean()
        kl = 0.5 * (mean**2 + jnp.exp(log_var) - log_var - 1).sum(1).mean()
        return image, error + self.weight * kl


def port(w: Any, swapped: bool = False, flip: bool = True, **how: Any) -> Any:
    model = Autoencoder(nnx.Rngs(0), **how)

    def put(variable: Any, x: Any) -> None:
        variable.set_value(jnp.asarray(x))

    for mine, theirs in (
        (model.down.g1, "encoder.norm1"),
        (model.down.g2, "encoder.norm2"),
        (model.up.g1, "decoder.norm1"),
    ):
        put(mine.scale, w[f"{theirs}.weight"])
        put(mine.bias, w[f"{theirs}.bias"])
    for conv, theirs in ((model.down.c1, "encoder.conv1"), (model.down.c2, "encoder.conv2")):
        put(conv.kernel, w[f"{theirs}.weight"].transpose(2, 3, 1, 0))
        put(conv.bias, w[f"{theirs}.bias"])
    rows = w["encoder.moments.weight"].reshape(-1, 9, 3, 4).transpose(0, 2, 3, 1)
    rows = np.split(rows.reshape(2 * LATENT, -1), 2)
    biases = np.split(w["encoder.moments.bias"], 2)
    heads = (model.down.to_mean, model.down.to_log_var)
    for layer, row, bias in zip(heads[::-1] if swapped else heads, rows, biases, strict=True):
        put(layer.kernel, row.T)
        put(layer.bias, bias)
    weight = w["decoder.fc.weight"].reshape(9, 3, 4, LATENT).transpose(1, 2, 0, 3)
    put(model.up.fc.kernel, weight.reshape(-1, LATENT).T)
    put(model.up.fc.bias, w["decoder.fc.bias"].reshape(9, 3, 4).transpose(1, 2, 0).reshape(-1))
    for i in (1, 2):
        kernel = w[f"decoder.up{i}.weight"].transpose(2, 3, 0, 1)
        put(getattr(model.up, f"k{i}"), kernel[::-1, ::-1] if flip else kernel)
        put(getattr(model.up, f"b{i}"), w[f"decoder.up{i}.bias"])
    return model


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "nnx", torch_model, partial(port, **how), inputs, faults)


CASES = [
    case("two heads and flipped kernels"),
    case("the variance for the deviation", Fault("", ("scale-missing",)), spread=jnp.exp),
    case(
        "mean and variance swapped",
        Fault("encoder.moments", ("split-order", "gate-swap"), ("encoder", ""), in_weights=True),
        swapped=True,
    ),
    case(
        "transposed kernels not flipped",
        Fault(
            "decoder.up?", ("kernel-layout", "transposed-kernel", "kernel-flip"), in_weights=True
        ),
        flip=False,
    ),
    case("one group", Fault("encoder.norm?", ("groups",)), groups=(1, 1)),
    case("mean of the squares", Fault("", ("output-scale", "scale-missing")), average=True),
    case("no gradient to the encoder", Fault("", ("stopped-gradient",)), stop=True),
]
