"""Batch norms are folded where the layers say that they can be, nowhere else, and results do not change."""

import copy

import pytest
import torch
from torch import nn

from sa2depth.nn import FlexibleAttention, GatedFeedForward, SelectiveAttentionBlock
from sa2depth.nn.folding import fold_norms


class ReadsElsewhere(FlexibleAttention):
    """Reads its input outside of the convolutions that a norm could be folded into."""

    def forward(self, x):
        return super().forward(x) * x.sigmoid()


class SamplesElsewhere(FlexibleAttention):
    def _sample(self, x, query):
        return super()._sample(x, query) + x.mean(dim=(2, 3), keepdim=True).square()


class Gated(GatedFeedForward):
    def forward(self, x):
        return super().forward(x) + x.square()


class Doubled(SelectiveAttentionBlock):
    """The same children, called in another way."""

    def forward(self, x):
        return super().forward(x) + self.norm1(x).abs() + self.norm2(x)


class Silent(SelectiveAttentionBlock):
    pass


class Repeats(SelectiveAttentionBlock):
    fold_norms = SelectiveAttentionBlock.fold_norms


class Rectified(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


class Scaled(nn.Conv2d):
    def forward(self, input):
        return super().forward(input).square()


def block(kind=SelectiveAttentionBlock):
    """A block whose batch norms have statistics, in float64 because ranks are discontinuous."""
    torch.manual_seed(0)
    made = kind(8, 4, 3, 1).double()
    return alive(made)


def alive(made):
    with torch.no_grad():
        for norm in made.modules():
            if isinstance(norm, nn.BatchNorm2d):
                if norm.track_running_stats:
                    norm.running_mean.normal_(0.0, 0.3)
                    norm.running_var.uniform_(0.3, 2.0)
                if norm.affine:
                    norm.weight.uniform_(0.5, 1.5)
                    norm.bias.normal_(0.0, 0.3)
    return made.eval()


def attention(kind):
    def change(made):
        made.attention = kind(8, 4, 3, 1)

    return change


def another_feed_forward(made):
    made.feed_forward = Gated(8)


def plain_layers(made):
    made.attention = nn.Conv2d(8, 8, 1)
    made.feed_forward = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())


def no_statistics(made):
    made.norm1 = nn.BatchNorm2d(8, track_running_stats=False)


def no_weights(made):
    made.norm1 = nn.BatchNorm2d(8, affine=False)


def group_norm(made):
    made.norm1 = nn.GroupNorm(2, 8)


def activation(made):
    made.norm2 = Rectified(8)


def another_convolution(made):
    made.attention.key_value = Scaled(8, 16, 1)


def wide_convolution(made):
    made.feed_forward.expand = nn.Conv2d(8, 32, 3, padding=1)


def no_bias(made):
    made.feed_forward.expand = nn.Conv2d(8, 32, 1, bias=False)


def parametrized(made):
    nn.utils.parametrizations.weight_norm(made.attention.query)


def hooked(made):
    made.attention.register_forward_pre_hook(lambda module, inputs: (inputs[0].relu(),))


def replaced_method(made):
    forward = made.forward
    made.forward = lambda x: forward(x) + made.norm1(x).square()


KINDS = {
    # class of the block, the change made to it, number of norms that can be folded
    "ours": (SelectiveAttentionBlock, None, 2),
    "a subclass that says nothing": (Silent, None, 0),
    "a subclass that repeats it": (Repeats, None, 2),
    "another forward": (Doubled, None, 0),
    "an attention that reads elsewhere": (SelectiveAttentionBlock, attention(ReadsElsewhere), 1),
    "an attention that samples elsewhere": (SelectiveAttentionBlock, attention(SamplesElsewhere), 1),
    "another feed-forward": (SelectiveAttentionBlock, another_feed_forward, 1),
    "layers of PyTorch": (SelectiveAttentionBlock, plain_layers, 0),
    "a norm with a batch's statistics": (SelectiveAttentionBlock, no_statistics, 1),
    "a norm without weights": (SelectiveAttentionBlock, no_weights, 2),
    "a group norm": (SelectiveAttentionBlock, group_norm, 1),
    "a norm with an activation": (SelectiveAttentionBlock, activation, 1),
    "another convolution": (SelectiveAttentionBlock, another_convolution, 1),
    "a 3x3 convolution": (SelectiveAttentionBlock, wide_convolution, 1),
    "a convolution without bias": (SelectiveAttentionBlock, no_bias, 1),
    "a parametrized convolution": (SelectiveAttentionBlock, parametrized, 1),
    "a hook that changes the input": (SelectiveAttentionBlock, hooked, 1),
    "a method replaced in the object": (SelectiveAttentionBlock, replaced_method, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_results_stay_and_the_expected_norms_are_folded(name):
    kind, change, folded = KINDS[name]
    made = block(kind)
    if change is not None:
        change(made)
        made = alive(made.double())
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        expected = made(x)
        assert fold_norms(made) == folded
        actual = made(x)
    assert (actual - expected).abs().max() < 1e-11
    assert (
        sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in (made.norm1, made.norm2))
        == sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in norms_before(kind, change)) - folded
    )


def norms_before(kind, change):
    made = block(kind)
    if change is not None:
        change(made)
    return made.norm1, made.norm2


def test_layers_that_two_blocks_share_keep_their_norms():
    """The two norms before such a layer have different statistics, so neither may be folded into it."""
    first, second = block(), block()
    second.attention = first.attention
    alive(second)
    pair = nn.Sequential(first, second)
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = pair(x)
        assert fold_norms(pair) == 0
        assert (pair(x) - expected).abs().max() < 1e-11


def test_folding_twice_changes_nothing():
    made = block()
    assert fold_norms(made) == 2
    before = copy.deepcopy(made.state_dict())
    assert fold_norms(made) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
