"""The operators between PyTorch, ONNX, the CUDA kernels and the TensorRT plugins.

Each is written once here as a `torch.library` custom op: the public function checks its arguments
at the edge, the structured PyTorch implementation below it is what runs where no kernel is
registered, and every other implementation is held to the same contract by the tests.

Rows are segment-major: static rows of all requests, then real-time rows of all requests, then
candidate rows of all requests. Each segment may end in padding rows after its offsets[B]: nobody
reads them, and their outputs are zero.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model_def import attention, structured
from model_def.attention import CANDIDATE, REALTIME, STATIC


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    static_offsets: Tensor,
    rt_offsets: Tensor,
    candidate_offsets: Tensor,
    rt_visible: Tensor,
    candidate_visible: Tensor,
    alpha: float,
    inv_n: float,
    first_query_segment: int = STATIC,
) -> Tensor:
    """Masked HSTU attention, inv_n * (silu(alpha q k^T) (.) mask) v (paper Eq. 5).

    Static rows see the static rows of their request; real-time and candidate rows see those, the
    leading `*_visible` real-time rows of their request, and themselves. No softmax: partial sums
    over keys simply add. Work is static^2 + rt (static + rt/2) + candidates (static + rt) pairs.

    Args:
        q: [T_q, H, D], rows of segments >= first_query_segment. Any strides, last dim contiguous.
        k, v: [T, H_kv, D], all rows; H a multiple of H_kv.
        static_offsets, rt_offsets, candidate_offsets: int32 [B+1], ascending from 0, each within
            its own segment.
        rt_visible, candidate_visible: int32 [T_r], [T_c]; 0 <= rt_visible[i] <= i's own index.
        alpha: scale of q k^T. inv_n: average factor, applied in fp32 after the product with v.
        first_query_segment: 0 static, 1 real-time, 2 candidate.

    Returns:
        [T_q, H, D], contiguous, in q's dtype.

    Raises:
        TypeError, ValueError: naming the argument. Values are looked at only outside of graph
            capture and export; shapes always.
    """
    offsets = {
        "static_offsets": static_offsets,
        "rt_offsets": rt_offsets,
        "candidate_offsets": candidate_offsets,
    }
    visible = {"rt_visible": rt_visible, "candidate_visible": candidate_visible}
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        if tensor.ndim != 3:
            raise ValueError(f"{name}: expected [rows, heads, head_dim], got {list(tensor.shape)}")
        if not tensor.is_floating_point() or tensor.dtype != q.dtype:
            raise TypeError(f"{name}: expected {q.dtype} floating point, got {tensor.dtype}")
        if tensor.shape[2] != q.shape[2]:
            raise ValueError(f"{name}: expected head_dim {q.shape[2]}, got {tensor.shape[2]}")
        if tensor.stride(2) != 1 and tensor.shape[2] > 1:
            raise ValueError(f"{name}: expected a contiguous last dimension")
    if v.shape != k.shape:
        raise ValueError(f"v: expected k's shape {list(k.shape)}, got {list(v.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q: {q.shape[1]} heads are no multiple of k's {k.shape[1]}")
    for name, tensor in {**offsets, **visible}.items():
        if tensor.dtype != torch.int32:
            raise TypeError(f"{name}: expected int32, got {tensor.dtype}")
        if tensor.ndim != 1:
            raise ValueError(f"{name}: expected 1-D, got {list(tensor.shape)}")
    for name, tensor in offsets.items():
        if len(tensor) != len(static_offsets) or len(tensor) < 1:
            raise ValueError(f"{name}: expected [B+1] like static_offsets, got {len(tensor)}")
    rows = (k.shape[0] - len(rt_visible) - len(candidate_visible), *map(len, visible.values()))
    if rows[0] < 0:
        raise ValueError(f"k: {k.shape[0]} rows are fewer than rt_visible and candidate_visible")
    if first_query_segment not in (STATIC, REALTIME, CANDIDATE):
        raise ValueError(f"first_query_segment: expected 0, 1 or 2, got {first_query_segment}")
    if q.shape[0] != sum(rows[first_query_segment:]):
        raise ValueError(f"q: expected {sum(rows[first_query_segment:])} rows, got {q.shape[0]}")
    if not torch.compiler.is_compiling() and not _capturing(q):
        for (name, tensor), limit in zip(offsets.items(), rows, strict=True):
            values = tensor.tolist()
            if values[0] != 0 or values != sorted(values) or values[-1] > limit:
                raise ValueError(
                    f"{name}: expected ascending from 0 to at most {limit} rows, got {values}"
                )
    result: Tensor = torch.ops.mtgr.hstu_attention(
        q, k, v, *offsets.values(), *visible.values(), alpha, inv_n, first_query_segment
    )
    return result


def _capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def group_layer_norm(x: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm with one affine a token group (paper section 4.2), statistics in fp32.

    Args:
        x: [T, d]. group: int32 [T], each in [0, G). weight, bias: [G, d].

    Returns:
        [T, d] in x's dtype.
    """
    _check_norm(x, group, weight, bias)
    result: Tensor = torch.ops.mtgr.group_layer_norm(x, group, weight, bias, eps)
    return result


def gated_group_layer_norm(
    x: Tensor, gate: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """GroupLN(x * gate), the product and its statistics in fp32 (paper Eq. 6). Shapes as above."""
    _check_norm(x, group, weight, bias)
    if gate.shape != x.shape or gate.dtype != x.dtype:
        raise ValueError(
            f"gate: expected {x.dtype} {list(x.shape)}, got {gate.dtype} {list(gate.shape)}"
        )
    result: Tensor = torch.ops.mtgr.gated_group_layer_norm(x, gate, group, weight, bias, eps)
    return result


def _check_norm(x: Tensor, group: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x: expected floating point [rows, d], got {x.dtype} {list(x.shape)}")
    if group.dtype != torch.int32 or group.shape != x.shape[:1]:
        raise ValueError(
            f"group: expected int32 [{x.shape[0]}], got {group.dtype} {list(group.shape)}"
        )
    for name, tensor in {"weight": weight, "bias": bias}.items():
        if tensor.ndim != 2 or tensor.shape[1] != x.shape[1] or tensor.shape != weight.shape:
            raise ValueError(f"{name}: expected [groups, {x.shape[1]}], got {list(tensor.shape)}")


def id_lookup(ids: Tensor, keys: Tensor, rows: Tensor, max_probe: int) -> Tensor:
    """Raw id -> row of a frozen open-addressing table (see `model_def.id_table`); unknown -> 0.

    Args:
        ids: int64 [N]. keys: int64 [C], C a power of two. rows: int32 [C], 0 marks an empty slot.
        max_probe: slots to try, the longest probe of the table.

    Returns:
        int32 [N].
    """
    for name, tensor, dtype in (
        ("ids", ids, torch.int64),
        ("keys", keys, torch.int64),
        ("rows", rows, torch.int32),
    ):
        if tensor.dtype != dtype or tensor.ndim != 1:
            raise ValueError(f"{name}: expected {dtype} 1-D, got {tensor.dtype} {tensor.ndim}-D")
    if keys.shape != rows.shape or keys.shape[0].bit_count() != 1:
        raise ValueError(f"keys: expected a power of two slots as rows, got {keys.shape[0]}")
    result: Tensor = torch.ops.mtgr.id_lookup(ids, keys, rows, max_probe)
    return result


Gradient = Callable[..., tuple[Tensor | None, ...]]
"""(gradient of the output, *arguments) -> gradients of the leading arguments, the tensors."""


def _register(
    name: str,
    forward: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    gradient: Gradient | None,
) -> None:
    """Make `mtgr::name` of `forward`. Nothing but the arguments is kept for the gradient."""
    operator = torch.library.custom_op(f"mtgr::{name}", forward, mutates_args=())
    operator.register_fake(fake)
    if gradient is None:
        return

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [t for t in inputs if isinstance(t, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.constants = inputs[len(tensors) :]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = gradient(grad, *ctx.saved_tensors, *ctx.constants)
        arguments = len(ctx.saved_tensors) + len(ctx.constants)
        return grads + (None,) * (arguments - len(grads))

    operator.register_autograd(backward, setup_context=setup)


def _recomputed(forward: Callable[..., Tensor]) -> Gradient:
    """The gradient by recomputing `forward` with PyTorch's own."""

    def gradient(grad: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [
                a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, Tensor) else a
                for a in arguments
            ]
            wanted = [a for a in leaves if isinstance(a, Tensor) and a.requires_grad]
            grads = iter(torch.autograd.grad(forward(*leaves), wanted, grad))
        return tuple(
            next(grads) if isinstance(a, Tensor) and a.requires_grad else None for a in leaves
        )

    return gradient


def _rows_like(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def _int32_like(ids: Tensor, *_: object) -> Tensor:
    return ids.new_empty(ids.shape, dtype=torch.int32)


_register("hstu_attention", attention.hstu_attention, _rows_like, attention.hstu_attention_gradient)
for norm in (structured.group_layer_norm, structured.gated_group_layer_norm):
    _register(norm.__name__, norm, _rows_like, _recomputed(norm))
_register("id_lookup", structured.id_lookup, _int32_like, None)
