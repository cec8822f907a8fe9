import sys

import pytest
import torch

from sa2depth import ops
from sa2depth.errors import ConfigError
from sa2depth.ops import selftest
from sa2depth.ops.precision import float32_products
from sa2depth.ops.registry import OPERATORS

CPU = torch.device("cpu")


def only(monkeypatch, operator):
    """The public function of an operator, which is the only one that is tested."""
    monkeypatch.setattr(selftest, "OPERATORS", {operator: OPERATORS[operator]})
    return getattr(ops, operator)


def checks(device):
    for operator, backend in selftest.offered(device):
        yield selftest.check(operator, backend, device)


def test_the_torch_path_passes_for_every_operator():
    found = {(check.operator, check.backend): check for check in checks(CPU)}
    for operator in ("dcnv3", "rank_attention", "selective_scan_2d"):
        check = found[operator, "torch"]
        assert check.passed
        assert 0 < check.error < 1e-5
        assert check.forward_ms > 0
    assert not any(backend in ("cuda", "auto") for _, backend in found)


def test_a_wrong_operator_is_found(monkeypatch):
    right = only(monkeypatch, "dcnv3")

    def wrong(input, *rest, **options):
        result = right(input, *rest, **options)
        return result if input.dtype == torch.float64 else result * (1 + 1e-3)

    monkeypatch.setattr(sys.modules["sa2depth.ops.dcnv3"], "dcnv3", wrong)
    assert [check.passed for check in checks(CPU) if check.error is not None].count(True) == 0


def test_a_wrong_gradient_is_found(monkeypatch):
    right = only(monkeypatch, "rank_attention")

    def wrong(query, key, value, scale):
        return right(query, key.detach() if key.dtype == torch.float32 else key, value, scale) + 0 * key.sum()

    monkeypatch.setattr(sys.modules["sa2depth.ops.rank_attention"], "rank_attention", wrong)
    assert not any(check.passed for check in checks(CPU))


def test_not_a_number_is_no_pass(monkeypatch):
    right = only(monkeypatch, "dcnv3")
    monkeypatch.setattr(
        sys.modules["sa2depth.ops.dcnv3"],
        "dcnv3",
        lambda x, *a, **k: right(x, *a, **k) * (torch.nan if x.dtype == torch.float32 else 1),
    )
    assert not any(check.passed for check in checks(CPU))


def test_a_back_end_that_cannot_run_says_why(monkeypatch):
    right = only(monkeypatch, "dcnv3")

    def refuses(x, *rest, **options):
        if x.dtype == torch.float32:
            raise ConfigError("no compiler was there")
        return right(x, *rest, **options)

    monkeypatch.setattr(sys.modules["sa2depth.ops.dcnv3"], "dcnv3", refuses)
    for check in checks(CPU):
        assert check.error is None
        assert not check.passed
        assert check.reason == "no compiler was there"


@pytest.mark.gpu
def test_every_back_end_passes_on_cuda():
    for check in checks(torch.device("cuda")):
        # mamba_ssm is a package of its own, and may be missing
        assert check.passed or (check.backend == "mamba_ssm" and check.error is None), check


def test_products_are_in_float32_whatever_the_user_allows(monkeypatch):
    seen = []
    right = only(monkeypatch, "dcnv3")

    def asks(*arguments, **options):
        seen.append(torch.get_float32_matmul_precision())
        return right(*arguments, **options)

    monkeypatch.setattr(sys.modules["sa2depth.ops.dcnv3"], "dcnv3", asks)
    with float32_products("high"):
        assert selftest.check("dcnv3", "torch", CPU).passed
        assert torch.get_float32_matmul_precision() == "high"
    assert set(seen) == {"highest"}
