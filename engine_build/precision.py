"""A model in 16 bits, as the GPU engines compute it."""

import copy

import torch

from model_def.model import MTGR

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def in_precision(model: MTGR, precision: str) -> MTGR:
    """A copy whose weights are of `precision`, but the heads': logits are made in float32.

    The norms' statistics are float32 within their operators, and so are the encodings of numbers,
    whose constants are no parameters.
    """
    made = copy.deepcopy(model).requires_grad_(False)
    for name, parameter in made.named_parameters():
        if not name.startswith("heads."):
            parameter.data = parameter.data.to(DTYPES[precision])
    return made
