"""Arguments of the attention: its modulator, and the rank ranges of its groups."""

import numpy as np
import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.nn import FlexibleAttention, Modulator
from sa2depth.ops import RANKS, cpu, rank_attention, use_backend
from sa2depth.ops.rank_attention import rank_ranges

GROUPS = {
    "one": [[0, 1]],
    "two that overlap": [[0, 0.5], [0.25, 0.75]],
    "five": [[i / 5, (i + 1) / 5] for i in range(5)],
}


def attended(query, key, value, start, end):
    """Attention of one query to the keys of some ranks, by definition."""
    scores = key @ query
    chosen = np.argsort(-scores, kind="stable")[start:end]
    weights = np.exp(scores[chosen] - scores[chosen].max())
    return weights / weights.sum() @ value[chosen]


@pytest.mark.parametrize("ranks", GROUPS)
def test_groups_are_the_requested_ranges(ranks):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, n, 4, dtype=torch.float64) for n in (6, 20, 20))
    output = rank_attention(query, key, value, 1.0, ranks=GROUPS[ranks])
    assert len(output) == 1 + len(GROUPS[ranks])
    for group, (start, end) in zip(output, [(0, 1), *GROUPS[ranks]], strict=True):
        for q, row in zip(query[0, 0].numpy(), group[0, 0].numpy(), strict=True):
            expected = attended(q, key[0, 0].numpy(), value[0, 0].numpy(), round(20 * start), round(20 * end))
            np.testing.assert_allclose(row, expected, rtol=1e-10)


@pytest.mark.parametrize("keys", [1, 2, 5, 100])
def test_every_group_has_a_key(keys):
    assert all(
        0 <= start < end <= keys for start, end in rank_ranges(keys, [[0, 0.01], [0.29, 0.3], [0.99, 1]])
    )
    assert rank_ranges(100, [[0.29, 0.58]]) == [(29, 58)]  # in floating point 28.99 and 57.99


def test_the_papers_ranks_are_the_default():
    assert rank_ranges(37, [list(ends) for ends in RANKS]) == rank_ranges(37)


@pytest.mark.skipif(bool(cpu.why_unavailable()), reason=cpu.why_unavailable())
def test_kernels_decline_other_groups_with_the_reason():
    query, key, value = (torch.randn(1, 1, n, 16) for n in (6, 20, 20))
    with use_backend("cpu"):
        rank_attention(query, key, value, 1.0)
        rank_attention(query, key, value, 1.0, ranks=[[0, 0.2], [0.2, 0.4], [0.4, 0.5], [0.5, 1]])
        with pytest.raises(
            ConfigError, match=r"four groups, each starting where the one before ends, .*\(0, 20\)"
        ):
            rank_attention(query, key, value, 1.0, ranks=[[0, 1]])


def test_one_group_of_all_keys_without_modulator_is_plain_attention():
    torch.manual_seed(0)
    layer = FlexibleAttention(8, 4, 3, 1, modulator=None, ranks=[[0, 1]])
    assert not any("modulator" in name for name in layer.state_dict())
    x = torch.rand(1, 8, 4, 6)
    attention = layer.project(torch.zeros_like(x)) + 0.2 * (
        _plain(layer, x) - layer.project(torch.zeros_like(x))
    )
    torch.testing.assert_close(layer(x), attention)


def _plain(layer, x):
    query = layer.query(x)
    key, value = layer.key_value(layer._sample(x, query)).chunk(2, dim=1)
    heads = [t.reshape(1, 2, 4, -1).transpose(2, 3) for t in (query, key, value)]
    attended = torch.nn.functional.scaled_dot_product_attention(*heads)
    return layer.project(attended.transpose(2, 3).reshape(x.shape))


def test_a_custom_modulator_is_called_with_the_channels():
    seen = []
    FlexibleAttention(8, 4, 3, 1, modulator=lambda channels: seen.append(channels) or Modulator(channels))
    assert seen == [8]


@pytest.mark.parametrize("ranks", [[], [[0.5, 0.5]], [[0, 1.5]], [[0, 0.1, 0.2]]])
def test_impossible_ranks_are_refused(ranks):
    with pytest.raises(ConfigError, match=r"a list of ranges"):
        FlexibleAttention(8, 4, 3, 1, ranks=ranks)
