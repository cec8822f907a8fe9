"""Shared by the fast back ends of rank-grouped attention: ranges, token-major memory, the gradient formula on GPUs."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sa2depth.ops.autograd import CustomOp, refuse_second_derivative

Ranges = Sequence[tuple[int, int]]
"""The first rank of each group, and the rank after its last."""

OUTPUTS = 5
"""One for all keys, and one for each of the four groups."""

FEWEST_KEYS = 4
"""With fewer keys, groups share keys."""


def ends(ranges: Ranges) -> list[int]:
    """Ends of the groups' ranges, each of which starts where the one before ends."""
    return [end for _, end in ranges]


def why_not_ranges(ranges: Ranges) -> str:
    """The reason why kernels cannot take these ranges; empty if they can."""
    if len(ranges) == OUTPUTS - 1:
        (first, a), (second, b), (third, c), (fourth, _) = ranges
        if first == 0 and second == a and third == b and fourth == c:
            return ""
    return f"it takes four groups, each starting where the one before ends, not the ranks {ranges}"


def of_one_type(*tensors: Tensor) -> list[Tensor]:
    """The tensors, converted to float32 if their dtypes differ."""
    return [t.float() for t in tensors] if len({t.dtype for t in tensors}) > 1 else list(tensors)


def token_major(tensor: Tensor) -> Tensor:
    """``(..., h, Q, d)`` as ``(..., Q, h, d)``, or the reverse."""
    return tensor.transpose(-3, -2)


def new_tokens(like: Tensor, *leading: int) -> Tensor:
    """Uninitialised ``(*leading, B, h, Q, d)``, token-major in memory; ``like`` has the last four dimensions."""
    batch, heads, tokens, dim = like.shape
    return token_major(like.new_empty((*leading, batch, tokens, heads, dim)))


def parts(queries: int, wanted: int, fewest: int, step: int) -> tuple[int, int]:
    """The number of parts of the queries for the gradient of the keys, and the queries in a part.

    Args:
        queries: number of queries.
        wanted: number of parts that would keep the machine busy.
        fewest: the fewest queries that a part should have.
        step: the queries of a part are a multiple of it.
    """
    count = max(1, min(wanted, queries // fewest))
    length = -(-queries // (count * step)) * step
    return -(-queries // length), length


def register(
    forward: CustomOp, backward: CustomOp, backend: str, like_outputs: Callable[..., tuple[Tensor, ...]]
) -> None:
    """Register the backward operator of rank-grouped attention on a GPU as the gradient of the forward operator.

    Args:
        forward: ``(query, key, value, scale, bounds, keep) -> output, *kept``: queries ``(B, h, Q, d)``, keys and
            values ``(B, h, N, d)`` of one dtype, factor of the scores and ascending ends of the groups' ranks to
            ``(5, B, h, Q, d)``, a view of ``(5, B, Q, h, d)``. Without ``keep`` the kept tensors are empty and there is
            no gradient; kept tensors never carry one.
        backward: ``(grad, query, key, value, output, *kept, scale)`` to the gradient of the queries, a view of
            ``(B, Q, h, d)``, and that of keys and values, ``(2, B, h, N, d)``, a view of ``(2, B, N, h, d)``.
        backend: name for the message about second derivatives.
        like_outputs: ``(query, key, keep) ->`` the outputs of ``forward``, uninitialised.
    """

    def like_forward(query: Tensor, key: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return like_outputs(query, key, others[-1])

    def like_backward(grad: Tensor, query: Tensor, key: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return new_tokens(query), new_tokens(key, 2)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        query, key, value, ctx.scale, _, ctx.kept = inputs
        ctx.save_for_backward(query, key, value, *output)
        ctx.mark_non_differentiable(*output[2:])

    def gradients(ctx: Any, grad: Tensor, *_grad_kept: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.kept:
            raise RuntimeError("rank_attention was called with keep=False: it has no backward pass")
        grad_query, grad_key_value = backward(grad, *ctx.saved_tensors, ctx.scale)
        return grad_query, *grad_key_value.unbind(0), None, None, None

    forward.register_fake(like_forward)
    backward.register_fake(like_backward)
    forward.register_autograd(gradients, setup_context=save)
    backward.register_autograd(refuse_second_derivative("rank_attention", backend))
