"""The entry point for users of a model: any image in, a Prediction at the input's size out."""

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.image_files import megapixel_limit
from sa2depth.infer.images import ImageLike, to_picture
from sa2depth.infer.prediction import Prediction
from sa2depth.metrics.any_size import (
    predict_any_size,
    resize_image,
    resize_map,
    stride_multiple,
    working_size,
)
from sa2depth.nn import expected_depth
from sa2depth.runtime.compiled import compile_layers, why_not_compiled
from sa2depth.runtime.inference import for_inference
from sa2depth.runtime.replayed import Graphed

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]


class Predictor:
    """Runs a depth model on images of any kind and size.

    Args:
        model: A model from ``load_model`` or ``create_model``. The predictor copies it to the device and merges layers
            (`sa2depth.runtime.inference.for_inference`); later changes of the model do not affect the copy.
        device: A torch device, or ``"auto"`` for CUDA if there is one.
        precision: ``"bf16"`` runs under autocast; ranks, the scan and the expectation stay float32 inside the
            model.
        flip: Average with the prediction on the mirrored image (TTA flip); doubles the time.
        max_side: Shrink larger images to this longer side in pixels before the network; the depth is still
            returned at the input's size.
        size: Resize every image to this (height, width), for example the size of training, and back.
        compile: Fuse layers with ``torch.compile`` on CUDA, which takes a minute at the first image of each size.
        graph: Replay CUDA graphs for up to four sizes of image, from the second image of a size on. Without graphs a
            small image takes as long as Python needs to launch its kernels. This has an effect on CUDA only.
        max_megapixels: Files with more are never decoded as a whole: with ``size`` or ``max_side`` they are read
            reduced (the results keep the file's size), else they are refused. None means the environment variable
            ``SA2DEPTH_MAX_MEGAPIXELS``, or 179 if that is not set.

    Raises:
        ConfigError: ``model`` is not a model, its weights are not float32 (or float64 for ``"fp32"``), the device or
            precision is unknown, ``size`` and ``max_side`` are both given, or the limit is not a positive number.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        flip: bool = False,
        max_side: int | None = None,
        size: tuple[int, int] | None = None,
        compile: bool = False,
        graph: bool = True,
        max_megapixels: float | None = None,
    ) -> None:
        given: object = model
        if not isinstance(given, nn.Module):
            file = given if isinstance(given, str | os.PathLike) else "model.safetensors"
            raise ConfigError(f'Predictor needs a model: Predictor(load_model("{os.fspath(file)}"))')
        if precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision must be fp32 or bf16, not '{precision}'")
        working_size(32, 32, size, max_side)
        kinds = {weight.dtype for weight in model.parameters()}
        if not kinds <= {torch.float32, torch.float64} or (precision == "bf16" and torch.float64 in kinds):
            raise ConfigError(
                f"the model's weights are {', '.join(sorted(map(str, kinds)))}, but precision='{precision}' needs "
                "float32: pass the model as load_model or create_model returned it"
            )
        self.device = pick_device(device)
        self.model: Any = for_inference(model, torch.bfloat16 if precision == "bf16" else None).to(
            self.device
        )
        if compile:
            if reason := why_not_compiled(self.device):
                raise ConfigError(f"compile=True: {reason}")
            compile_layers(self.model)
        self.precision = precision
        self.flip = flip
        self.max_side = max_side
        self.size = size
        self.max_megapixels = megapixel_limit(max_megapixels)
        self._multiple = stride_multiple(model)
        self._network: Callable[[Tensor], Tensor] = self._maps
        if graph and self.device.type == "cuda":
            self._network = Graphed(
                self._maps, calls=2 if flip else 1
            )  # captures at the second image of a size

    def __call__(
        self, image: ImageLike, intrinsics: npt.ArrayLike | None = None, id: str | None = None
    ) -> Prediction:
        """Predict the depth of one image.

        Args:
            image: Path, Pillow image, array ``(H, W[, 1|3|4])`` or tensor ``([1,] 3, H, W)``; see
                `sa2depth.infer.images.to_tensor`.
            intrinsics: ``(3, 3)`` camera matrix in pixels of the input; it is only passed on to the prediction.
            id: Name of the prediction; by default the stem of the path.

        Returns:
            Depth in metres and confidence at the input's size.

        Raises:
            DataError: The file is missing, not a picture, or too large.
            ShapeError: The image or the camera matrix has another shape, type or range.
        """
        camera = None if intrinsics is None else _camera(intrinsics)
        picture, (height, width) = to_picture(image, self._working_size, self.max_megapixels)
        # the picture may be large, so it is freed as soon as it is resized
        resized = resize_image(picture.to(self.device), self._working_size(height, width))
        del picture
        with torch.inference_mode():
            maps = predict_any_size(self._network, resized, self._multiple, self.flip)
            depth, confidence = (resize_map(v, (height, width)) for v in (maps[:, :1], maps[:, 1:]))
        prediction = Prediction(
            depth=depth[0, 0].cpu().numpy(),
            confidence=confidence[0, 0].cpu().numpy(),
            min_depth=float(self.model.min_depth),
            max_depth=float(self.model.max_depth),
            intrinsics=camera,
            id=id or _name_of(image),
        )
        if prediction.broken_pixels:
            logger.warning(
                "%s: %d of %d depths are NaN or infinite: the model is broken or diverged in training",
                prediction.id, prediction.broken_pixels, prediction.depth.size,
            )  # fmt: skip
        return prediction

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        return working_size(height, width, self.size, self.max_side)

    def _maps(self, padded: Tensor) -> Tensor:
        """Depth (m) and confidence ``(1, 2, H, W)`` of a picture whose sides are multiples of the network's."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits, centers = self.model.predict_bins(padded)
        maps = torch.cat([expected_depth(logits, centers), certainty(logits)], dim=1)
        return resize_map(maps, (padded.shape[-2], padded.shape[-1]))


def certainty(logits: Tensor) -> Tensor:
    """One minus the normalised entropy of the distribution over bins.

    Args:
        logits: ``(B, K, H, W)``, scores of the bins at each pixel.

    Returns:
        ``(B, 1, H, W)`` float32 in [0, 1]: 1 if one bin has all the weight, 0 if all are equal.
    """
    shares = logits.float().softmax(dim=1)
    entropy = torch.special.entr(shares).sum(dim=1, keepdim=True)
    return (1 - entropy / math.log(max(shares.shape[1], 2))).clamp(0, 1)


def pick_device(device: str | torch.device) -> torch.device:
    """A torch device by name.

    Args:
        device: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...

    Returns:
        The device.

    Raises:
        ConfigError: There is no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"'{device}' is not a device: choose auto, cpu, cuda or cuda:1") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{found} was requested, but PyTorch sees {torch.cuda.device_count()} CUDA devices: use "
            "device=cpu or auto"
        )
    if found.type not in ("cpu", "cuda"):
        try:
            torch.ones(1, device=found).cpu()
        except (
            RuntimeError,
            AssertionError,
            ImportError,
        ) as error:  # each of PyTorch's back ends has its own
            reason = str(error).split("\n")[0].rstrip(".")
            raise ConfigError(
                f"{found} was requested, but PyTorch cannot compute there ({reason}): use device=cpu or auto"
            ) from error
    return found


def _camera(intrinsics: npt.ArrayLike) -> npt.NDArray[np.float64]:
    camera = np.asarray(intrinsics, dtype=np.float64)
    if camera.shape != (3, 3):
        raise ShapeError(f"intrinsics must be a (3, 3) camera matrix in pixels, not of shape {camera.shape}")
    return camera


def _name_of(image: ImageLike) -> str:
    if isinstance(image, str | os.PathLike):
        return Path(image).stem
    filename = getattr(image, "filename", "") if isinstance(image, Image.Image) else ""
    return Path(str(filename)).stem or "image"
