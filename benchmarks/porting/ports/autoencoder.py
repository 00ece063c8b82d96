"""A convolutional autoencoder of signals; a port in Linen, channels last."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

LATENT = 7


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(2, 8, 5, stride=2, padding=2),
            nn.ELU(),
            nn.Conv1d(8, 12, 3, stride=2, padding=1),
            nn.InstanceNorm1d(12, affine=True),
            nn.ELU(),
        )
        self.to_latent, self.from_latent = nn.Linear(12 * 6, LATENT), nn.Linear(LATENT, 12 * 6)
        self.decoder = nn.Sequential(
            nn.ConvTranspose1d(12, 8, 4, stride=2, padding=1),
            nn.ELU(),
            nn.Upsample(scale_factor=2),
            nn.Conv1d(8, 2, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        z = self.to_latent(self.encoder(x).flatten(1))
        return {"latent": z, "output": self.decoder(self.from_latent(z).unflatten(1, (12, 6)))}


def torch_model() -> nn.Module:
    return draw(Autoencoder())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((3, 2, 24)).astype(np.float32)
    return {"torch": (x,), "jax": (x.swapaxes(1, 2),)}


class SignalAE(linen.Module):
    end: Any = linen.sigmoid
    channels_first: bool = True
    eps: float = 1e-5
    axes: tuple[int, ...] = (1,)

    @linen.compact
    def __call__(self, x):
        x = linen.elu(linen.Conv(8, (5,), 2, padding=[(2, 2)], name="conv1")(x))
        x = linen.Conv(12, (3,), 2, padding=[(1, 1)], name="conv2")(x)
        mean, var = x.mean(self.axes, keepdims=True), x.var(self.axes, keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(var + self.eps)
        gain = self.param("gain", linen.initializers.ones, (12,))
        shift = self.param("shift", linen.initializers.zeros, (12,))
        x = linen.elu(x * gain + shift)
        # The linear layers keep PyTorch's order, channels before time.
        x = x.swapaxes(1, 2) if self.channels_first else x
        z = linen.Dense(LATENT, name="enc")(x.reshape(len(x), -1))
        x = linen.Dense(72, name="dec")(z).reshape(-1, 12, 6).swapaxes(1, 2)
        x = linen.ConvTranspose(8, (4,), (2,), padding="SAME", name="up")(x)
        x = jnp.repeat(linen.elu(x), 2, axis=1)
        return {"latent": z, "output": self.end(linen.Conv(2, (3,), name="conv3")(x))}


def convert(w: Any) -> Any:
    def conv(name: str, *axes: int) -> Any:
        kernel = w[f"{name}.weight"].transpose(axes)
        kernel = kernel[::-1] if axes == (2, 0, 1) else kernel  # transposed ones are flipped
        return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(w[f"{name}.bias"])}

    return {
        "params": {
            "conv1": conv("encoder.0", 2, 1, 0),
            "conv2": conv("encoder.2", 2, 1, 0),
            "gain": jnp.asarray(w["encoder.3.weight"]),
            "shift": jnp.asarray(w["encoder.3.bias"]),
            "enc": conv("to_latent", 1, 0),
            "dec": conv("from_latent", 1, 0),
            "up": conv("decoder.0", 2, 0, 1),
            "conv3": conv("decoder.3", 2, 1, 0),
        }
    }


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    def port(w: Any) -> Any:
        return SignalAE(**changes), convert(w)

    return Case(name, "linen", torch_model, port, inputs, faults)


CASES = [
    case("signals"),
    case(
        "no sigmoid at the end",
        Fault("decoder.4", ("activation-missing",), ("decoder",)),
        end=lambda x: x,
    ),
    case(
        "flattened time before channels",
        Fault("", ("flatten-order",), ("to_latent",), in_weights=True),
        channels_first=False,
    ),
    case(
        "norm over the channels",
        Fault("encoder.3", ("norm-axis",)),
        axes=(2,),
    ),
]
