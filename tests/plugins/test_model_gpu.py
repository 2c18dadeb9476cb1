"""The model with the CUDA kernels against the same weights on the CPU (pytest -m gpu)."""

import logging

import pytest
import torch
from torch import Tensor

from model_def.batch import PackedBatch
from model_def.config import ModelConfig
from model_def.model import MTGR, to_tensors
from tests.model_def.cases import batch, model, sample

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

CONFIGS = (ModelConfig(layers=2, d_model=64, heads=2), ModelConfig(layers=3, d_model=512, heads=2))


def requests() -> PackedBatch:
    return batch(sample(0), sample(1, counts=(9,)), sample(2, lifelong=0, event_ms=(), counts=(3,)))


def logits(net: MTGR, device: str) -> Tensor:
    tensors = {name: tensor.to(device) for name, tensor in to_tensors(requests()).items()}
    return net.to(device)(tensors)


@pytest.mark.parametrize("config", CONFIGS)
def test_scores_equal_those_of_the_cpu_model(config: ModelConfig) -> None:
    """bf16 on the GPU is within 2e-3 of float32 on the CPU, score by score."""
    with torch.no_grad():
        expected = torch.sigmoid(logits(model(config), "cpu"))
        got = torch.sigmoid(logits(model(config).to(torch.bfloat16), "cuda").float()).cpu()
    worst = float((got - expected).abs().max())
    logging.getLogger(__name__).info("largest difference of a score: %.1e", worst)
    assert worst < 2e-3


@pytest.mark.parametrize("config", CONFIGS)
def test_a_training_step_has_the_gradient_of_the_cpu_model(config: ModelConfig) -> None:
    """The gradient through the kernels is finite and points where the CPU's points."""
    gradients = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        net = model(config).to(dtype)
        logits(net, device).float().square().mean().backward()
        gradients.append(
            {n: p.grad.float().cpu() for n, p in net.named_parameters() if p.grad is not None}
        )
    expected, got = gradients
    assert got.keys() == expected.keys()
    assert all(bool(g.isfinite().all()) for g in got.values())
    for name, want in expected.items():
        if want.norm() > 1e-4 * max(float(g.norm()) for g in expected.values()):
            error = float((got[name] - want).norm() / want.norm())
            assert error < 0.1, (name, error)
