"""One training in progress: a model, its growing id tables, and the step that moves them.

A step takes one or several ragged batches and weighs each row alike, so how its samples are split
does not change it. Knows nothing of files or of where samples came from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_def.config import ModelConfig
from model_def.data.samples import TrainingSample
from model_def.growing_table import Admission
from model_def.id_table import IdTable
from model_def.lookup import GrowingTables
from model_def.loss import Counts, listwise_loss, task_loss
from model_def.model import MTGR
from model_def.options import TrainingOptions
from model_def.schema import FeatureSchema

EMBEDDING_STD = 0.05
"""Of a model whose training does not say."""


@dataclass(frozen=True)
class StepResult:
    """What a step saw: its loss, and its rows' logits and labels [rows, tasks], on the device."""

    loss: Tensor
    logits: Tensor
    labels: Tensor


class Trainer:
    """Trains one model by `step`; `finish` gives it with its id tables frozen."""

    def __init__(
        self,
        config: ModelConfig,
        schema: FeatureSchema,
        labels: NDArray[np.float32],
        options: TrainingOptions,
        device: str | torch.device = "cpu",
    ):
        """`labels` [N, tasks] are those of all rows; NaN where not labelled."""
        torch.manual_seed(options.seed)
        self._options, self._labels, self._device = options, labels, torch.device(device)
        self.model = MTGR(config, schema, {name: IdTable() for name in schema.id_tables})
        start_at_base_rates(self.model, labels)
        std = options.embedding_std or EMBEDDING_STD
        for name, values in self.model.embeddings.values.items():
            if name not in schema.id_tables:
                torch.nn.init.normal_(values, std=std)
        for layer in range(config.layers):
            self.model.get_parameter(f"layers.{layer}.out_weight").data.mul_(options.branch_gain)
        admission = Admission(options.min_id_count, options.max_ids)
        self._tables = GrowingTables(schema, config.embedding_dim, std, options.seed, admission)
        self.model.to(self._device)
        self._optimizer = _optimizer(self.model, schema, options)

    def step(
        self, batches: Sequence[TrainingSample], done: float, *, admit: bool = True
    ) -> StepResult:
        """One optimizer step over ragged batches, at a share `done` of the training.

        `admit` counts ids and lets new ones into the tables: once for each sample, in the first
        epoch, so that an id's count is that of its occurrences.
        """
        rate = self._options.rate_at(done)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        read = self._tables.look_up(batches, self._device, admit=admit)
        known = [self._known(batch) for batch in batches]
        counts = Counts.of(torch.cat(known))
        losses, outputs = [], []
        for tensors, labels in zip(read.batches, known, strict=True):
            logits = self._logits(tensors, read.vectors)
            loss = self._loss(logits, labels, tensors, counts)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            losses.append(loss.detach())
            outputs.append(logits.detach())
        self._optimizer.step()
        self._tables.update(read, rate, self._options.embedding_decay)
        return StepResult(torch.stack(losses).sum(), torch.cat(outputs), torch.cat(known))

    def finish(self) -> tuple[MTGR, dict[str, IdTable], dict[str, NDArray[Any]]]:
        """The model on the CPU with its tables frozen, their ids, and their metadata (`USE`)."""
        id_tables, uses = self._tables.install(self.model.cpu())
        return self.model, id_tables, uses

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, for `restore`."""
        tables = {
            name: {key: torch.from_numpy(array) for key, array in state.items()}
            for name, state in self._tables.state().items()
        }
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "tables": tables,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, in a trainer just made with the same arguments."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._tables.restore(
            {
                name: {key: tensor.numpy() for key, tensor in table.items()}
                for name, table in state["tables"].items()
            }
        )

    def _known(self, batch: TrainingSample) -> Tensor:
        return torch.from_numpy(self._labels[batch.rows]).to(self._device)

    def _logits(self, tensors: dict[str, Tensor], vectors: dict[str, Tensor]) -> Tensor:
        half = self._options.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            rows = self.model.candidate_rows(self.model.embeddings(tensors, vectors))
        return self.model.logits(rows)  # outside: in float32

    def _loss(
        self, logits: Tensor, labels: Tensor, tensors: dict[str, Tensor], counts: Counts
    ) -> Tensor:
        loss = task_loss(logits, labels, counts)
        if self._options.listwise:
            request = tensors["candidate_context"].long()
            loss = loss + self._options.listwise * listwise_loss(logits, labels, request, counts)
        return loss


def _optimizer(
    model: MTGR, schema: FeatureSchema, options: TrainingOptions
) -> torch.optim.Optimizer:
    """AdamW of all but the id tables, which have their own; decays the embeddings alone."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        table = name.removeprefix("embeddings.values.")
        if table not in schema.id_tables:
            groups[table != name].append(parameter)
    decays = {True: options.embedding_decay, False: 0.0}
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decays[embedding]}
            for embedding, parameters in groups.items()
            if parameters
        ],
        lr=options.learning_rate,
        fused=True,
    )


def start_at_base_rates(model: MTGR, labels: NDArray[np.float32]) -> None:
    """Set each head's last bias to the log-odds of its task, so that training starts calibrated."""
    for task, rate in zip(model.config.tasks, np.nanmean(labels, 0).tolist(), strict=True):
        odds = min(max(rate, 1e-6), 1 - 1e-6)
        bias: Tensor = model.heads[task][-1].bias  # type: ignore[index]  # a Sequential
        torch.nn.init.constant_(bias, math.log(odds / (1 - odds)))
