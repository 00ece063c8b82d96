"""The former name of `functional`, kept for one release."""

from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.functional import merge as bind

__all__ = ["abstract_model", "bind", "init_params"]
