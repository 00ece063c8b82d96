"""Ports of PyTorch models to JAX, right and wrong, and the measure of what `divergence` finds.

`ports/` was written together with `jaxformer.porting`, `ports_blind/` after it and without a look
at it. A file is a family of models; `case.py` says what it holds.
"""
