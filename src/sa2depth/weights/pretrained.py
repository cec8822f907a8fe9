"""Loading pretrained encoders: every tensor is counted, and weights that do not fit are refused.

The released training script never read its ``--pretrain`` option and silently trained from random weights; here the
share of the backbone's tensors that was loaded is reported.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from sa2depth.errors import CheckpointError
from sa2depth.models.encoders import InternImage
from sa2depth.weights.checkpoint import identify, interpret
from sa2depth.weights.efficientnet_lite import is_efficientnet_lite, to_timm
from sa2depth.weights.files import WeightFile
from sa2depth.weights.official import encoder_from_internimage, our_name, unwrap
from sa2depth.weights.sources import Source, open_source

logger = logging.getLogger(__name__)

_CONTAINERS = ("model", "state_dict", "model_state", "module")


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_encoder`.

    Attributes:
        source: The source as the user named it.
        loaded: Number of backbone tensors that received weights.
        total: Number of backbone tensors, buffers included; projections after the backbone are not counted.
        share: ``loaded / total``, in [0, 1].
        ignored: Names of the source's tensors that the backbone does not have: classifier and head.
    """

    source: str
    loaded: int
    total: int
    share: float
    ignored: list[str]

    def __str__(self) -> str:
        counts = f"{self.loaded} of {self.total} backbone tensors loaded ({self.share:.1%})"
        ignored = f", {len(self.ignored)} of the source not needed" if self.ignored else ""
        return f"{self.source}: {counts}{ignored}"


def load_encoder(encoder: nn.Module, source: str | os.PathLike[str], min_share: float = 0.99) -> LoadReport:
    """Load pretrained weights into an encoder, all or nothing.

    Args:
        encoder: An encoder, or a whole model, whose ``encoder`` is used.
        source: A path (a model of this project or a released one, whose encoder is used; an InternImage
            classification checkpoint; a timm state dict; an EfficientNet-Lite file), ``timm:NAME`` for the
            timm hub, or ``pip:PACKAGE`` for an installed package that contains weights.
        min_share: Smallest share of backbone tensors that must be loaded, in [0, 1].

    Returns:
        Counts, and the names of tensors that were not needed.

    Raises:
        CheckpointError: The source cannot be read, is of another architecture, or covers less than
            ``min_share``; the encoder is then unchanged.
    """
    encoder = _encoder_of(encoder)
    found = open_source(source)
    _check_normalisation(encoder, found)
    backbone = _backbone_of(encoder)
    state, projections = _state_for(encoder, found)
    matched, ignored = _match(backbone.state_dict(), state, found.name)
    _check_matched(backbone, matched, ignored, found.name, min_share)
    own = encoder.state_dict()
    fits = {name: t for name, t in projections.items() if name in own and own[name].shape == t.shape}
    ignored += [name for name in projections if name not in fits]
    with torch.no_grad():
        for target, values in ((backbone.state_dict(), matched), (encoder.state_dict(), fits)):
            for name, tensor in values.items():
                target[name].copy_(tensor)
    total = len(backbone.state_dict())
    report = LoadReport(found.name, len(matched), total, len(matched) / total, ignored)
    logger.info("%s", report)
    return report


def _encoder_of(module: nn.Module) -> nn.Module:
    inner = getattr(module, "encoder", None)
    return inner if isinstance(inner, nn.Module) else module


def _backbone_of(encoder: nn.Module) -> nn.Module:
    """The part that receives pretrained weights: the encoder's ``backbone``, or the encoder itself."""
    inner = getattr(encoder, "backbone", None)
    return inner if isinstance(inner, nn.Module) else encoder


def _check_normalisation(encoder: nn.Module, found: Source) -> None:
    """Refuse hub weights that were trained with another normalisation than the encoder's."""
    mean, std = getattr(encoder, "pixel_mean", None), getattr(encoder, "pixel_std", None)
    if (
        found.pixel_stats is not None
        and mean is not None
        and found.pixel_stats != (tuple(mean), tuple(std or ()))
    ):
        raise CheckpointError(
            f"{found.name} was trained with pixel mean and deviation {found.pixel_stats}, but this encoder "
            f"normalises with {(mean, std)}: give the encoder's name with the tag of the weights, "
            f"name={found.name.removeprefix('timm:')}"
        )


def _state_for(encoder: nn.Module, found: Source) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A source's tensors under the backbone's names (or timm's), and those of the projections after it."""
    backbone = _backbone_of(encoder)
    whole = _encoder_of_checkpoint(found)
    if whole is not None:
        if backbone is encoder:
            return whole, {}
        inside = {
            name.removeprefix("backbone."): t for name, t in whole.items() if name.startswith("backbone.")
        }
        return inside, {name: t for name, t in whole.items() if not name.startswith("backbone.")}
    if isinstance(backbone, InternImage):
        return _from_internimage(found), {}
    state = _unwrap(found)
    if is_efficientnet_lite(state):
        _check_padding(backbone, found.name)
        state = to_timm(state)
    return state, {}


def _from_internimage(found: Source) -> dict[str, Tensor]:
    """A classification checkpoint under our names; the head's tensors keep theirs and are reported as ignored."""
    try:
        state = dict(encoder_from_internimage(found.content))
        whole = unwrap(found.content)
    except CheckpointError as error:
        raise CheckpointError(f"{found.name} does not fit an InternImage encoder: {error}") from error
    return state | {name: tensor for name, tensor in whole.items() if our_name(f"backbone.{name}") is None}


def _check_padding(backbone: nn.Module, source: str) -> None:
    """Refuse the timm variant that has the same names and shapes but other padding than the weights' training."""
    if not any(isinstance(module, Conv2dSame) for module in backbone.modules()):
        raise CheckpointError(
            f"{source} was trained with TensorFlow's padding, but this encoder pads symmetrically, which "
            "gives other features: choose timm's tf_efficientnet_lite0, 1 or 2 as encoder"
        )


def _encoder_of_checkpoint(found: Source) -> dict[str, Tensor] | None:
    """The encoder's tensors if the source is a whole SA2Depth model, otherwise ``None``."""
    if found.path is None:
        return None
    file = WeightFile(found.path, found.content, found.metadata)
    if identify(file) is None:
        return None
    state = interpret(file).state
    return {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}


def _unwrap(found: Source) -> dict[str, Tensor]:
    """The innermost dict of tensors, without prefixes that all of its names share."""
    content: Mapping[str, Any] = found.content
    while (
        key := next((key for key in _CONTAINERS if isinstance(content.get(key), Mapping)), None)
    ) is not None:
        content = content[key]
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(
            f"{found.name} holds no tensors (its keys are {', '.join(map(str, list(content)[:6]))}): name a file of "
            "weights"
        )
    for prefix in ("module.", "backbone."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _match(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Pair tensors by name, allowing for timm's renaming of modules in its feature extractors.

    timm's extractors either keep a classification model's names, flatten ``stages.0`` to ``stages_0``, or put
    ``model.`` in front; comparing names with underscores for dots and without that prefix covers all three.
    """
    index: dict[str, str] = {}
    for name in state:
        if index.setdefault(_plain(name), name) != name:
            raise CheckpointError(
                f"{source} has two tensors that timm names alike: {name} and {index[_plain(name)]}"
            )
    matched, shapes = {}, []
    for name, tensor in own.items():
        found = index.pop(_plain(name), None)
        if found is None:
            continue
        if state[found].shape != tensor.shape:
            shapes.append(f"{found} {tuple(state[found].shape)} for {tuple(tensor.shape)}")
            continue
        matched[name] = state[found]
    if shapes:
        raise CheckpointError(
            f"{source} is of another architecture: {len(shapes)} of {len(own)} backbone tensors have another "
            f"shape, first {', '.join(shapes[:3])}. Choose the encoder for which these weights were trained"
        )
    return matched, list(index.values())


def _plain(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def _check_matched(
    backbone: nn.Module, matched: Mapping[str, Tensor], ignored: list[str], source: str, min_share: float
) -> None:
    own = backbone.state_dict()
    missing = [name for name in own if name not in matched]
    share = len(matched) / len(own)
    if share < min_share:
        hint = ". No name fits: is this file for another encoder?" if not matched else ""
        raise CheckpointError(
            f"{source} covers {len(matched)} of {len(own)} backbone tensors ({share:.1%}, at least "
            f"{min_share:.0%} is needed); missing: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}{hint}"
        )
    deeper = list(_inside(own, ignored))
    if deeper:
        raise CheckpointError(
            f"{source} is of a deeper architecture: {len(deeper)} of its tensors belong to blocks that this "
            f"backbone does not have, first {', '.join(deeper[:3])}. Choose the encoder for which they were trained"
        )


def _inside(own: Mapping[str, Tensor], ignored: list[str]) -> Iterator[str]:
    """Unused tensors of the source in a part that the backbone has, so they are not those of a head."""
    names = [_plain(name) for name in own]
    for name in ignored:
        part = name.removeprefix("model.").partition(".")[0] + "_"
        if any(own_name.startswith(part) for own_name in names):
            yield name
