"""Checkpoints: save, verify, restore, retain; Orbax (its v1 interface) is used only here.

A checkpoint is a directory named after its step. It is built under another name and renamed once,
when Orbax has committed the arrays and a manifest with every file's SHA-256 lies beside them:

    checkpoints/100/                   a complete checkpoint; nothing half-written has such a name
      params/                          the model's parameters
      optimizer/                       the rest of the train state; absent from an imported model
      manifest.jsonl                   step, metadata, leaves of each item, hash of each file
    checkpoints/.saving-120            a save in progress, or killed
    checkpoints/.trash-80              a deletion in progress, or killed
    checkpoints/.damaged-100-<time>    did not verify, in the way of a new step 100; never deleted

An item is read without the bytes of the others: parameters take about a third of an AdamW state.

Orbax loads flipped bits and casts dtypes silently, so an item is loaded only after its files were
hashed again and its leaves compared with those expected. The functions that read change nothing on
disk; `CheckpointWriter` blocks the training loop only while arrays are copied to the host. With
several processes all call `save` and `restore`, on one shared file system; the
first alone writes manifests and deletes.
Source: https://orbax.readthedocs.io/en/latest/guides/checkpoint/v1/checkpointing_pytrees.html
"""

import logging
from pathlib import Path

from jaxformer.checkpoint.layout import OPTIMIZER, PARAMS, all_steps, check_path, steps
from jaxformer.checkpoint.reader import (
    Checkpoint,
    join,
    load,
    read_best,
    read_metadata,
    restore,
    split,
    state_hash,
)
from jaxformer.checkpoint.writer import CheckpointWriter

# Orbax logs an error with its traceback and raises it as well: the exception is enough.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in Path(record.pathname).parts)
# asyncio logs the errors of all other reads that Orbax began together with the one that failed.
logging.getLogger("asyncio").addFilter(lambda record: "/orbax/" not in record.getMessage())

__all__ = [
    "OPTIMIZER",
    "PARAMS",
    "Checkpoint",
    "CheckpointWriter",
    "all_steps",
    "check_path",
    "join",
    "load",
    "read_best",
    "read_metadata",
    "restore",
    "split",
    "state_hash",
    "steps",
]
