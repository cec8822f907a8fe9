"""Translation of state dicts of the released code and of InternImage to our names.

The table is one to one: every tensor keeps its shape and values; only its name changes.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sa2depth.errors import CheckpointError
from sa2depth.models import PRESETS, create_model

_log = logging.getLogger(__name__)

# Released name on the left, ours on the right; `#` is a number that both share.
_INTERNIMAGE = (
    ("patch_embed.conv1", "stem.conv1"),
    ("patch_embed.norm1.1", "stem.norm1"),
    ("patch_embed.conv2", "stem.conv2"),
    ("patch_embed.norm2.1", "stem.norm2"),
    ("levels.#.norm.0", "stages.#.norm"),
    ("levels.#.downsample.conv", "stages.#.downsample.conv"),
    ("levels.#.downsample.norm.1", "stages.#.downsample.norm"),
    ("levels.#.blocks.#.norm1.0", "stages.#.blocks.#.norm1"),
    ("levels.#.blocks.#.norm2.0", "stages.#.blocks.#.norm2"),
    ("levels.#.blocks.#.gamma1", "stages.#.blocks.#.scale1"),
    ("levels.#.blocks.#.gamma2", "stages.#.blocks.#.scale2"),
    ("levels.#.blocks.#.mlp.fc1", "stages.#.blocks.#.mlp.fc1"),
    ("levels.#.blocks.#.mlp.fc2", "stages.#.blocks.#.mlp.fc2"),
    ("levels.#.blocks.#.dcn.dw_conv.0", "stages.#.blocks.#.dcn.depthwise"),
    ("levels.#.blocks.#.dcn.dw_conv.1.1", "stages.#.blocks.#.dcn.norm"),
    ("levels.#.blocks.#.dcn.offset", "stages.#.blocks.#.dcn.offset"),
    ("levels.#.blocks.#.dcn.mask", "stages.#.blocks.#.dcn.mask"),
    ("levels.#.blocks.#.dcn.input_proj", "stages.#.blocks.#.dcn.input_proj"),
    ("levels.#.blocks.#.dcn.output_proj", "stages.#.blocks.#.dcn.output_proj"),
)
_FEED_FORWARD = (
    ("proj_in", "expand"),
    ("group1", "gate_by_1"),
    ("group2", "gate_by_2"),
    ("group3", "gate_by_4"),
    ("proj_out", "project"),
)
_ATTENTION = (
    ("proj_q", "query"),
    ("proj_kv", "key_value"),
    ("offsetnet.0", "offset.depthwise"),
    ("offsetnet.1.norm", "offset.norm"),
    ("offsetnet.3", "offset.project"),
    ("modulator.conv.0", "modulator.mix"),
    ("modulator.conv.1", "modulator.activation"),
    ("modulator.convz.0", "modulator.update_depthwise"),
    ("modulator.convz.1", "modulator.update"),
    ("modulator.convr.0", "modulator.reset_depthwise"),
    ("modulator.convr.1", "modulator.reset"),
    *((f"attn{group + 1}", f"group_weights.{group}") for group in range(4)),
    ("proj_out", "project"),
)
_SCAN = (
    ("x_proj_weight", "x_proj_weight"),
    ("dt_projs_weight", "dt_weight"),
    ("dt_projs_bias", "dt_bias"),
    ("A_logs", "a_log"),
    ("Ds", "d_skip"),
    ("in_proj", "in_proj"),
    ("conv2d", "conv"),
    ("out_norm", "out_norm"),
    ("out_proj", "out_proj"),
)


def _inside(official: str, ours: str, rows: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The rows with a prefix before each name."""
    return tuple((f"{official}.{theirs}", f"{ours}.{name}") for theirs, name in rows)


_BLOCK = (
    ("pe.conv", "position.conv"),
    ("pe.shortcut", "position.shortcut"),
    ("norm1", "norm1"),
    *_inside("attn", "attention", _ATTENTION),
    ("norm2", "norm2"),
    *_inside("GGFN", "feed_forward", _FEED_FORWARD),
)
_MODEL = (
    *_inside("backbone", "encoder", _INTERNIMAGE),
    # The released code counts blocks from coarse to fine; all our lists run from fine to coarse.
    *(row for i in range(4) for row in _inside(f"block{3 - i}", f"decoder.blocks.{i}", _BLOCK)),
    *(
        row
        for i in range(3)
        for row in (
            (f"up{2 - i}.0", f"decoder.upsamples.{i}.expand"),
            (f"up{2 - i}.1.norm", f"decoder.upsamples.{i}.norm"),
            (f"fusion{2 - i}", f"decoder.upsamples.{i}.fuse"),
        )
    ),
    *((f"MLBP.proj_{4 - i}", f"bin_head.projections.{i}") for i in range(4)),
    ("MLBP.norm", "bin_head.norm"),
    ("MLBP.mlp.0", "bin_head.fc1"),
    ("MLBP.mlp.3", "bin_head.fc2"),
    *((f"MLSS.SFU.proj_conv{i + 1}", f"depth_head.fusion.projections.{i}") for i in range(4)),
    ("MLSS.SFU.Z.1", "depth_head.fusion.squeeze"),
    *((f"MLSS.SFU.V{i + 1}", f"depth_head.fusion.excite.{i}") for i in range(4)),
    ("MLSS.norm0.norm", "depth_head.norm1"),
    *_inside("MLSS.mamba", "depth_head.scan", _SCAN),
    ("MLSS.norm1.norm", "depth_head.norm2"),
    *_inside("MLSS.GGFN", "depth_head.feed_forward", _FEED_FORWARD),
    ("MLSS.conv_out", "depth_head.score"),
)
_OURS_TO_OFFICIAL = tuple((ours, official) for official, ours in _MODEL)
# A row names a layer, to which one of these tensor names is added, or a bare parameter.
_LEAF = r"(\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?"
CLASSIFIER = ("conv_head.", "head.", "fc_norm.", "clip_projector.")


def our_name(official: str) -> str | None:
    """Our name of a tensor of the released model; None if it has no such tensor."""
    return _rename(official, _MODEL)


def official_name(ours: str) -> str | None:
    """The released name of one of our tensors; None if the released model has no such tensor."""
    return _rename(ours, _OURS_TO_OFFICIAL)


def from_official(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Translate a released state dict, strictly.

    Args:
        state_dict: the result of ``torch.load`` on a released file: flat, or under ``model``, with or without
            the ``module.`` that distributed training puts before each name.

    Returns:
        Tensors under our names: exactly those of the architecture, with its shapes.

    Raises:
        CheckpointError: if a name is unknown or missing, or the shapes fit no known size.
    """
    flat = unwrap(state_dict)
    renamed, unknown = {}, []
    for name, tensor in flat.items():
        ours = our_name(name)
        if ours is None:
            unknown.append(name)
        else:
            renamed[ours] = tensor
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(flat)} tensors are not part of the released SA2Depth model: "
            f"{_some(unknown)}. Give a file of the released SA2Depth, or of sa2depth.train"
        )
    name = architecture_of(renamed)
    count = sum(tensor.numel() for tensor in renamed.values())
    _log.info("%s: %d tensors (%d values), all matched", name, len(renamed), count)
    return renamed


def architecture_of(state_dict: Mapping[str, Tensor]) -> str:
    """The preset to which a state dict in our names belongs, by its names and shapes.

    Raises:
        CheckpointError: if none fits exactly; the message lists the differences from the nearest.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    nearest = max(PRESETS, key=lambda preset: len(shapes.items() & preset_shapes(preset).items()))
    expected = preset_shapes(nearest)
    if shapes == expected:
        return nearest
    wrong = [f"{n} {shapes[n]} instead of {expected[n]}" for n in shapes.keys() & expected.keys()
             if shapes[n] != expected[n]]  # fmt: skip
    parts = [
        f"{len(names)} {what}: {_some(sorted(names))}"
        for what, names in (
            ("missing", expected.keys() - shapes.keys()),
            ("not part of it", shapes.keys() - expected.keys()),
            ("of another shape", wrong),
        )
        if names
    ]
    raise CheckpointError(
        f"these {len(shapes)} tensors fit no known architecture; the nearest is {nearest}: {'; '.join(parts)}"
    )


def encoder_from_internimage(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Translate InternImage's own classification checkpoint for our encoder, without its head.

    Args:
        state_dict: the result of ``torch.load`` on such a file, flat or under ``model``.

    Returns:
        Tensors under the names of ``sa2depth.models.encoders.InternImage``.

    Raises:
        CheckpointError: if a tensor belongs neither to the backbone nor to the head, or none to the backbone.
    """
    flat = unwrap(state_dict)
    renamed, unknown = {}, []
    for name, tensor in flat.items():
        if name.startswith(CLASSIFIER):
            continue
        ours = _rename(name, _INTERNIMAGE)
        if ours is None:
            unknown.append(name)
        else:
            renamed[ours] = tensor
    if unknown or not renamed:
        raise CheckpointError(
            f"{len(unknown)} of {len(flat)} tensors are not part of InternImage: {_some(unknown)}"
        )
    return renamed


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a released file, taken out of ``model`` and without ``module.`` before their names.

    Raises:
        CheckpointError: if it is not a state dict.
    """
    inner = state_dict.get("model", state_dict)
    if not isinstance(inner, Mapping):
        raise CheckpointError(
            f"'model' of the checkpoint holds a {type(inner).__name__}, not a dict of tensors"
        )
    strange = [str(name) for name, tensor in inner.items() if not isinstance(tensor, Tensor)]
    if strange or not inner:
        raise CheckpointError(
            f"the checkpoint is not a state dict: {len(strange)} of {len(inner)} entries are not tensors: "
            f"{_some(strange)}"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in inner.items()}


@cache
def preset_shapes(preset: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a preset's tensors."""
    with torch.device("meta"):
        model = create_model(preset, min_depth=0.0, max_depth=1.0)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@cache
def _patterns(rows: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(re.escape(old).replace(r"\#", r"(\d+)") + _LEAF), new) for old, new in rows]


def _rename(name: str, rows: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, new in _patterns(rows):
        if match := pattern.fullmatch(name):
            *numbers, leaf = match.groups()
            for number in numbers:
                new = new.replace("#", number, 1)
            return new + (leaf or "")
    return None


def _some(names: list[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown}, ..." if len(names) > limit else shown
