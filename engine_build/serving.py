"""The model as an engine sees it, whatever runs it. Needs torch, and no ONNX."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model_def.model import MTGR, owners


class Serving(nn.Module):
    """The arrays of a serving batch, by name -> a probability float32 [T_c] a task."""

    def __init__(self, model: MTGR):
        super().__init__()
        self.model = model

    def forward(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Serving has one context row a request, so each candidate's is its request's."""
        candidates = arrays["candidate_visible"].shape[0]
        context = owners(arrays["candidate_offsets"], candidates)
        logits = self.model({**arrays, "candidate_context": context})
        return torch.sigmoid(logits).unbind(1)
