"""The kernels on a GPU, for tests marked `gpu`."""

import pytest
import torch

import model_def.ops  # noqa: F401  # defines the operators that the kernels are registered for
from plugins import loader


@pytest.fixture(scope="session")
def kernels() -> loader.Library:
    """The operators of `torch.ops.mtgr` run our kernels on CUDA tensors from here on."""
    if not torch.cuda.is_available():
        pytest.skip("NOT CHECKED: no GPU")
    return loader.register()
