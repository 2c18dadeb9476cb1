"""The model's laws: a score depends on the request alone, and each shortcut changes nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model_def.attention import CANDIDATE
from model_def.batch import PackedBatch, pack
from model_def.config import PRESETS, ModelConfig, TokenGroup
from model_def.model import MTGR, Frame, Layer, to_tensors
from tests.model_def.cases import SCHEMA, SNAPSHOT_MS, batch, behaviours, model, sample

TINY = PRESETS["tiny"]


@torch.no_grad()
def scores(net: MTGR, packed: PackedBatch) -> Tensor:
    return torch.sigmoid(net(to_tensors(packed)))


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


def test_golden_encoder(golden_dir: Path) -> None:
    """A float32 stack of layers is within 1e-5 of the independent vectors, file by file."""
    files = sorted(golden_dir.glob("encoder_*.npz"))
    assert len(files) >= 2
    for path in files:
        vectors = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
        layers = sum(name.endswith("uvqk_weight") for name in vectors)
        config = ModelConfig(
            layers=layers,
            d_model=vectors["x"].shape[1],
            heads=int(vectors["heads"]),
            inv_n=float(vectors["inv_n"]),
            eps=float(vectors["eps"]),
            eps_gated=float(vectors["eps"]),
        )
        assert config.alpha == pytest.approx(float(vectors["alpha"]), rel=1e-6)
        rt, candidate = vectors["rt_visible"], vectors["candidate_visible"]
        frame = Frame(
            rows=(len(vectors["x"]) - len(rt) - len(candidate), len(rt), len(candidate)),
            static_offsets=vectors["static_offsets"],
            rt_offsets=vectors["rt_offsets"],
            candidate_offsets=vectors["candidate_offsets"],
            rt_visible=rt,
            candidate_visible=candidate,
            group=vectors["group"],
            static_source=torch.empty(0),
        )
        x = vectors["x"]
        for i in range(layers):
            layer = Layer(config)
            layer.load_state_dict({k: vectors[f"layer{i}.{k}"] for k in layer.state_dict()})
            with torch.no_grad():
                x, _ = layer(x, frame)
        assert (x.double() - vectors["out"]).norm() / vectors["out"].norm() < 1e-5, path.name


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 50))
def test_batch_equals_single(lengths: list[int], seed: int) -> None:
    """A request scores the same alone as among any batch mates."""
    net = model()
    samples = [sample(seed + i, lifelong=n, counts=(i + 1,)) for i, n in enumerate(lengths)]
    together = scores(net, batch(*samples))
    close(together, torch.cat([scores(net, batch(s)) for s in samples]))


@given(st.permutations(range(6)))
@settings(max_examples=10, deadline=None)
def test_order_of_candidates_does_not_matter(order: list[int]) -> None:
    """Shuffled candidates get their own scores, shuffled."""
    net, base = model(), sample(1)
    shuffled = replace(base, candidates=base.candidates[order])
    close(scores(net, batch(shuffled)), scores(net, batch(base))[order])


@given(st.integers(1, 5))
@settings(max_examples=5, deadline=None)
def test_chunking_does_not_matter(cut: int) -> None:
    """Candidates scored in two requests score as in one."""
    net, base = model(), sample(2)
    parts = [
        replace(base, candidates=rows, context_candidates=np.array([len(rows)], np.int32))
        for rows in (base.candidates[:cut], base.candidates[cut:])
    ]
    close(torch.cat([scores(net, batch(p)) for p in parts]), scores(net, batch(base)))


def test_padding_does_not_matter() -> None:
    """Arrays padded to a bucket's size, filled with junk, give the same scores."""
    net, packed = model(), batch(sample(3), sample(4, lifelong=2))
    tensors = to_tensors(packed)
    widths = {spec.name: spec.width for spec in SCHEMA.arrays}
    rows = {"lifelong": 5, "realtime": 3, "rt": 3, "candidate": 4}
    for name, tensor in tensors.items():
        extra = rows.get(name.split("_")[0], 0) * widths.get(name, 1)
        if extra and not name.endswith("offsets"):
            filler = 99.0 if tensor.is_floating_point() else 0
            tensors[name] = torch.cat((tensor, tensor.new_full((extra,), filler)))
    with torch.no_grad():
        padded = torch.sigmoid(net(tensors))[: packed.candidates]
    close(padded, scores(net, packed))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 12), st.booleans(), st.integers(0, 50))
def test_score_of_encoded_user_equals_forward(lifelong: int, events: bool, seed: int) -> None:
    """The two halves compose exactly to the whole, sequences empty or not."""
    net = model()
    tensors = to_tensors(
        batch(sample(seed, lifelong=lifelong, event_ms=(1000, 2000) if events else ()))
    )
    with torch.no_grad():
        close(net.score(net.encode_user(tensors), tensors), net(tensors))


def test_encoded_user_serves_any_later_request() -> None:
    """A user encoded once scores other candidates at another time, as a fresh pass does."""
    net, base = model(), sample(5)
    later = replace(sample(6, request_ms=(9000,)), profile=base.profile, lifelong=base.lifelong)
    with torch.no_grad():
        user = net.encode_user(to_tensors(batch(base)))
        tensors = to_tensors(batch(later))
        close(net.score(user, tensors), net(tensors))


def test_last_layer_skipping_is_exact() -> None:
    """Computing only candidate rows in the last layer gives the logits of the whole layer."""
    net, tensors = model(), to_tensors(batch(sample(7), sample(8)))
    with torch.no_grad():
        skipped = net(tensors)
        last = net.layers[-1]

        class Whole(nn.Module):
            def forward(self, x: Tensor, frame: Frame, query: int = 0) -> tuple[Tensor, None]:
                assert query == CANDIDATE
                return last(x, frame)[0][frame.first_row(CANDIDATE) :], None

        net.layers[-1] = Whole()
        close(net(tensors), skipped, 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(4000, 9000), st.integers(0, 50))
def test_later_events_never_leak(earlier: int, later_ms: int, seed: int) -> None:
    """No score changes when an event at or after the request's time is added, at any cap."""
    net = model()
    times = tuple(range(100, 100 + earlier))
    base = sample(seed, event_ms=times)
    event = behaviours(np.random.default_rng(seed + 1), "realtime", [SNAPSHOT_MS + later_ms])
    leaky = replace(base, realtime=np.concatenate([event, base.realtime]))
    assert pack(SCHEMA, leaky).buffer.tobytes() == pack(SCHEMA, base).buffer.tobytes()
    close(scores(net, batch(leaky)), scores(net, batch(base)), 0.0)


def test_an_earlier_event_does_count() -> None:
    """An event before the request moves its scores: the leak test can fail."""
    net, base = model(), sample(9)
    seen = replace(base, realtime=base.realtime[:-2])
    assert (scores(net, batch(seen)) - scores(net, batch(base))).abs().max() > 1e-6


def test_window_exposure_sees_only_its_past() -> None:
    """In a training window each exposure scores as if it had been requested alone."""
    net = model()
    window = sample(10, event_ms=(1000, 3000), request_ms=(2000, 4000), counts=(3, 3))
    alone = [
        replace(
            window,
            context=window.context[i : i + 1],
            candidates=window.candidates[3 * i : 3 * i + 3],
            context_candidates=np.array([3], np.int32),
        )
        for i in range(2)
    ]
    close(scores(net, batch(window)), torch.cat([scores(net, batch(s)) for s in alone]))


def test_halving_inv_n_moves_no_score() -> None:
    """inv_n is followed by a norm whose own eps is small enough that halving it is no change."""
    halved = TINY.model_copy(update={"inv_n": TINY.inv_n / 2})
    packed = batch(*(sample(i, lifelong=i) for i in range(12)))
    close(scores(model(halved), packed), scores(model(), packed), 1e-4)


def test_groups_are_a_list_not_four() -> None:
    """With one named group for all segments the model has one affine, and runs."""
    segments = ("profile", "lifelong", "realtime", "candidate")
    config = TINY.model_copy(update={"token_groups": (TokenGroup(name="all", segments=segments),)})
    net = model(config)
    assert net.layers[0].ln_in_weight.shape[0] == 1
    assert scores(net, batch(sample(11))).isfinite().all()


def test_host_embeddings_equal_engine_embeddings() -> None:
    """Rows gathered before the model give the scores of tables inside it."""
    engine = model()
    host = model(TINY.model_copy(update={"embedding_source": "host"}))
    tensors = to_tensors(batch(sample(12)))
    with torch.no_grad():
        close(host(host.embeddings(tensors)), engine(tensors), 0.0)


def dense_attention_flops(q: list[int], k: list[int], *_: object, **__: object) -> int:
    """Both products over every pair, as the paper counts them; shapes [T, H, D]."""
    return 2 * 2 * q[0] * k[0] * q[1] * q[2]


@pytest.mark.parametrize(
    ("preset", "gflops"), [("small", 5.47), ("medium", 18.59), ("large", 55.76)]
)
def test_table_2_gflops(preset: str, gflops: float) -> None:
    """At 500 tokens the layers do the GFLOPs of the paper's Table 2, by formula and by count."""
    config = PRESETS[preset]
    assert config.attention_gflops(500) == pytest.approx(gflops, abs=0.005)
    none = torch.zeros(0, dtype=torch.int32)
    no_rows = torch.zeros(2, dtype=torch.int32)
    group = torch.zeros(500, dtype=torch.int32)
    offsets = torch.tensor([0, 500], dtype=torch.int32)
    frame = Frame((500, 0, 0), offsets, no_rows, no_rows, none, none, group, none)
    formula = {torch.ops.mtgr.hstu_attention: dense_attention_flops}
    with FlopCounterMode(display=False, custom_mapping=formula) as counter, torch.no_grad():
        Layer(config)(torch.zeros(500, config.d_model), frame)
    assert counter.get_total_flops() * config.layers / 1e9 == pytest.approx(gflops, abs=0.005)
