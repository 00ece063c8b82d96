"""Carry the original's weights into a port that has none of them."""

from jaxformer.porting.carry.carrying import Carried, carried_port, carry
from jaxformer.porting.carry.loaded import equal_leaves

__all__ = ["Carried", "carried_port", "carry", "equal_leaves"]
