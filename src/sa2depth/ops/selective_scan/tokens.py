"""Matrix products of tokens in torch, shared by the selective scan's back ends for GPUs."""

import torch
from einops import rearrange
from torch import Tensor
from torch.torch_version import TorchVersion

_PARTS_OF_SUMS = (
    32  # of sums over tokens; each part is a matrix product, and few long ones would not fill a GPU
)
_WIDE_PRODUCTS = (
    TorchVersion(torch.__version__) >= "2.8"
)  # torch multiplies 16-bit matrices to a float32 result


def project_tokens(x: Tensor, x_proj_weight: Tensor) -> Tensor:
    """Low-rank dt, B and C of ``x (B, L, D)`` for each direction, ``(B, L, 4 * (R + 2N))``, float32."""
    weight = rearrange(x_proj_weight, "k r d -> d (k r)")
    return _product(x.flatten(0, 1), weight.to(x.dtype)).view(*x.shape[:2], weight.shape[1])


def add_projection_gradients(
    grad_x: Tensor, grad_projected: Tensor, x: Tensor, x_proj_weight: Tensor
) -> Tensor:
    """Add the gradient through the projections to ``grad_x``, and return the gradient of their weights.

    ``grad_projected`` has the dtype of ``x``.
    """
    weight = rearrange(x_proj_weight, "k r d -> (k r) d")
    grad_x.flatten(0, 1).addmm_(grad_projected.flatten(0, 1), weight.to(x.dtype))
    return sum_of_products(grad_projected, x).sum(dim=0).view_as(x_proj_weight)


def sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """``left^T right`` of ``(B, L, I)`` and ``(B, L, J)``, summed over tokens: ``(B, I, J)`` float32."""
    batch, length = left.shape[:2]
    limit = max(1, _PARTS_OF_SUMS // batch)
    parts = max(n for n in range(1, limit + 1) if length % n == 0)
    left, right = (rearrange(t, "b (p l) c -> (b p) l c", p=parts) for t in (left, right))
    sums = rearrange(_product(left.transpose(1, 2), right), "(b p) i j -> b p i j", p=parts)
    return sums.sum(dim=1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Float32 product of matrices or of batches of them."""
    if left.dtype == torch.float32:
        return left @ right
    if not (_WIDE_PRODUCTS and left.is_cuda):
        return left.float() @ right.float()
    multiply = torch.mm if left.dim() == 2 else torch.bmm
    return multiply(left, right, out_dtype=torch.float32)
