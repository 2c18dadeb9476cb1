"""Training: a sane start, the same weights from the same seed, and something learnt."""

import numpy as np
import pytest
import torch

from model_def.config import PRESETS, ModelConfig
from model_def.data.logs import Logs
from model_def.data.samples import TrainingSample, task_labels, time_split, training_samples
from model_def.data.simulate import simulate
from model_def.data.simulator import DAY_MS, SCHEMA, Marketplace
from model_def.evaluate import as_text, predict, report
from model_def.loss import listwise_loss, task_loss
from model_def.metrics import auc
from model_def.options import TrainingOptions
from model_def.train import train

START_MS = 1_767_571_200_000
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def logs() -> Logs:
    """Four days of a small city."""
    return simulate(Marketplace(users=60, items=80, seed=5), START_MS, days=4, seed=5).logs


@pytest.fixture(scope="module")
def samples(logs: Logs) -> list[TrainingSample]:
    """All of it packed."""
    return list(training_samples(logs))


def weights(
    samples: list[TrainingSample], logs: Logs, seed: int, config: ModelConfig = TINY
) -> dict[str, torch.Tensor]:
    """Parameters after a short training."""
    options = TrainingOptions(epochs=1, seed=seed)
    trained = train(config, SCHEMA, samples[:40], task_labels(logs.requests, config.tasks), options)
    return trained.model.state_dict()


def test_starts_at_the_base_rates(samples: list[TrainingSample], logs: Logs) -> None:
    """The first loss is near the entropy of the labels' rates: no blow-up, no wasted steps."""
    labels = task_labels(logs.requests, TINY.tasks)
    trained = train(TINY, SCHEMA, samples, labels, TrainingOptions(epochs=1, batch_tokens=1 << 20))
    rates = labels.mean(0)
    entropy = -(rates * np.log(rates) + (1 - rates) * np.log(1 - rates)).sum()
    assert trained.losses[0] == pytest.approx(entropy, rel=0.1)


def test_start_is_as_asked(samples: list[TrainingSample], logs: Logs) -> None:
    """Embeddings start as wide as asked, the unknown id at zero, and W_o as small as asked."""
    labels = task_labels(logs.requests, TINY.tasks)
    still = {"epochs": 1, "learning_rate": 1e-12}
    plain = train(TINY, SCHEMA, samples[:2], labels, TrainingOptions(**still)).model
    options = TrainingOptions(**still, embedding_std=0.7, branch_gain=0.25)
    model = train(TINY, SCHEMA, samples[:2], labels, options).model
    everything = torch.cat([values.detach().flatten() for values in model.embeddings.parameters()])
    assert float(everything.std()) == pytest.approx(0.7, rel=0.1)
    for name, values in model.embeddings.values.items():
        assert bool((values[0].detach().abs() < 1e-9).all()) == (name == "item_id")
    for layer, other in zip(model.layers, plain.layers, strict=True):
        assert torch.allclose(layer.out_weight, 0.25 * other.out_weight, atol=1e-6)


def test_same_seed_same_weights(samples: list[TrainingSample], logs: Logs) -> None:
    """A seed gives the same weights bit for bit; another seed gives others."""
    first, again, other = (weights(samples, logs, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_unlabelled_rows_weigh_nothing() -> None:
    """A task's loss is the mean over its labelled rows; the others give no gradient."""
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    nan = float("nan")
    labels = torch.tensor([[1, 0], [0, nan], [nan, nan], [1, 1], [nan, 0], [0, nan]])
    loss = task_loss(logits, labels)
    expected = sum(
        torch.nn.functional.binary_cross_entropy_with_logits(
            logits[known, task], labels[known, task]
        )
        for task in range(2)
        for known in [~labels[:, task].isnan()]
    )
    assert torch.allclose(loss, torch.as_tensor(expected))
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, labels.isnan())


def test_listwise_loss_is_a_softmax_over_the_labelled_rows_of_each_request() -> None:
    """Each positive's -log share of its request's labelled rows, averaged; no positive, no loss."""
    request = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    first = torch.tensor([1.0, 0, 0, 1, 1, np.nan, 0])
    second = torch.tensor([0.0, 0, 0, 0, 0, 0, np.nan])
    logits = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)) * 3 + 20
    logits[5, 0] = 90.0  # unlabelled
    z = logits[:, 0]
    expected = (z[0:3].logsumexp(0) - z[0] + 2 * z[3:5].logsumexp(0) - z[3] - z[4]) / 3
    loss = listwise_loss(logits, torch.stack((first, second), 1), request)
    torch.testing.assert_close(loss, expected)


def test_embedding_decay_shrinks_embeddings(samples: list[TrainingSample], logs: Logs) -> None:
    """Decay makes the embeddings smaller than they would be."""
    labels = task_labels(logs.requests, TINY.tasks)
    sizes = []
    for decay in (0.0, 300.0):
        options = TrainingOptions(epochs=1, embedding_decay=decay)
        trained = train(TINY, SCHEMA, samples[:40], labels, options)
        sizes.append(sum(float(p.detach().norm()) for p in trained.model.embeddings.parameters()))
    assert sizes[1] < 0.9 * sizes[0]


def test_needs_both_classes(samples: list[TrainingSample], logs: Logs) -> None:
    """Logs without a positive of some task are refused, with the counts."""
    labels = task_labels(logs.requests, TINY.tasks)
    labels[:, 1] = 0
    with pytest.raises(ValueError, match=r"task ctcvr: 0 positives of \d+ labelled exposures"):
        train(TINY, SCHEMA, samples, labels, TrainingOptions())
    with pytest.raises(ValueError, match="no exposures"):
        train(TINY, SCHEMA, [], labels, TrainingOptions())


def test_id_tables_hold_what_was_seen(samples: list[TrainingSample], logs: Logs) -> None:
    """Every id seen often enough has a row, and its count; rarer ones share the unknown id's.

    An occurrence counts once, however many epochs read it.
    """
    few = samples[:40]
    ids = np.concatenate(
        [
            s.batch.arrays[name]
            for s in few
            for name in ("lifelong_ids", "realtime_ids", "candidate_ids")
        ]
    )
    seen, counts = np.unique(ids, return_counts=True)
    labels = task_labels(logs.requests, TINY.tasks)
    for at_least in (1, 20):
        options = TrainingOptions(epochs=2, min_id_count=at_least, batch_tokens=2000)
        trained = train(TINY, SCHEMA, few, labels, options)
        table, uses = trained.id_tables["item_id"], trained.uses["item_id"]
        admitted = counts >= at_least
        assert set(table.ids.tolist()) == set(seen[admitted].tolist())
        assert dict(zip(uses["id"].tolist(), uses["count"].tolist(), strict=True)) == dict(
            zip(seen[admitted].tolist(), counts[admitted].tolist(), strict=True)
        )


def test_learning_rate_rises_then_falls_to_zero() -> None:
    """The schedule warms up to its peak once, and ends at zero."""
    options = TrainingOptions(learning_rate=1, warm_up=0.2)
    rates = [options.rate_at(i / 200) for i in range(201)]
    peak = int(np.argmax(rates))
    assert peak == 40
    assert rates[peak] == pytest.approx(1, abs=0.01)
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_learns_more_than_any_feature_says(logs: Logs) -> None:
    """After a few epochs the held-out day is ranked better than by the best single feature."""
    past, future = time_split(logs, START_MS + 3 * DAY_MS)
    options = TrainingOptions(epochs=8, batch_tokens=2048)
    labels = task_labels(past.requests, TINY.tasks)
    trained = train(TINY, SCHEMA, list(training_samples(past)), labels, options)
    assert np.mean(trained.losses[-10:]) < 0.9 * np.mean(trained.losses[:10])
    truth = task_labels(future.requests, TINY.tasks)
    found = predict(trained.model, list(training_samples(future)))
    assert not np.isnan(found).any()
    features = future.requests.candidates["numbers"].T
    single = max(max(auc(truth[:, 0], f), auc(truth[:, 0], -f)) for f in features)
    assert auc(truth[:, 0], found[:, 0]) > single
    ctr, ctcvr = report(TINY.tasks, future.requests, truth, found)
    assert ctr.positives >= ctcvr.positives > 0
    assert f"{ctr.auc:.4f}" in as_text([ctr, ctcvr])


def test_prediction_is_independent_of_batching(samples: list[TrainingSample], logs: Logs) -> None:
    """A sample's probabilities do not depend on which others share its batch."""
    options = TrainingOptions(epochs=1)
    labels = task_labels(logs.requests, TINY.tasks)
    model = train(TINY, SCHEMA, samples, labels, options).model
    assert np.allclose(predict(model, samples, 1), predict(model, samples, 9999), atol=1e-5)
