"""Checkpoints: one reader for every format that holds an SA2Depth model, and one writer for ours.

Ours is a safetensors file whose header holds the architecture with its depth range, so that nobody has to remember a
flag. The released files lack the depth range, and the caller must give it.
"""

import copy
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from sa2depth.atomic import atomic_path
from sa2depth.errors import CheckpointError, ConfigError
from sa2depth.models import PRESETS, UntrustedError, build_model
from sa2depth.targets import packages, parse_trusted
from sa2depth.version import __version__
from sa2depth.weights.files import WeightFile, read_file
from sa2depth.weights.official import architecture_of, from_official

FORMAT_VERSION = 1
"""Increased when older readers would misread new files."""

_HEADER = "sa2depth"
_LIGHTNING_PREFIX = "model."
_RELEASED_NAME = "MLBP."
# A file may come from a stranger, so it may name only layers, nothing else in the package.
_TRUSTED = ("sa2depth.models.", "sa2depth.nn.")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A whole model as a file describes it.

    Attributes:
        path: The file.
        kind: ``"sa2depth"`` (our safetensors), ``"lightning"`` (our training) or ``"released"``.
        spec: The architecture as ``models.build_model`` takes it; ``min_depth`` and ``max_depth`` are absent
            for released files.
        state: Tensors under our names.
        architecture: A name for people: the preset's, or the class of the encoder.
        version: Version of the package that wrote the file; ``None`` if unknown.
        extra: Everything else that was saved: scores, the protocol, the run.
    """

    path: Path
    kind: str
    spec: dict[str, Any]
    state: Mapping[str, Tensor]
    architecture: str
    version: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def load_model(
    path_or_name: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    min_depth: float | None = None,
    max_depth: float | None = None,
    trusted: str | Sequence[str] = (),
) -> nn.Module:
    """Build the model that a checkpoint describes and load its weights, strictly.

    Args:
        path_or_name: Our ``.safetensors``, a Lightning ``.ckpt`` of our training, or a released ``.pth`` in
            any of its containers (flat; ``{'model': ...}`` with ``module.`` prefixes).
        device: Device of the model.
        min_depth: Nearest bin edge in metres; needed for released files, which lack it. For other files it must agree
            with the file if it is given.
        max_depth: Farthest bin edge in metres; needed like ``min_depth``.
        trusted: Packages, modules or classes outside of sa2depth that the file may name: ``"mypkg"`` or
            ``["mypkg.encoders", "other"]``. They are imported and called, so name only code that you know; nothing
            else that a file names is ever imported.

    Returns:
        The model in eval mode; ``model.spec`` is its architecture.

    Raises:
        CheckpointError: The file is missing, damaged, foreign, or of another architecture; the depth range is
            missing or contradicts the file; a preset's name was given, for which no weights are published; or the
            file names classes that are not trusted.
        ConfigError: ``trusted`` is not a name or a list of names.
    """
    allowed = parse_trusted(trusted)
    checkpoint = read_checkpoint(path_or_name)
    model = build(checkpoint, min_depth=min_depth, max_depth=max_depth, trusted=allowed)
    return model.to(device)


def read_checkpoint(path_or_name: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of any known format without building the model.

    Args:
        path_or_name: See `load_model`.

    Returns:
        Architecture and tensors under our names.

    Raises:
        CheckpointError: The file is missing, damaged or foreign, or a preset's name was given.
    """
    _refuse_preset_name(path_or_name)
    return interpret(read_file(path_or_name))


def identify(file: WeightFile) -> str | None:
    """The kind of model that a file holds, judged by its header and names.

    Args:
        file: From `read_file`.

    Returns:
        ``"sa2depth"``, ``"lightning"`` or ``"released"``; ``None`` if it is not a whole SA2Depth model.
    """
    if _HEADER in file.metadata:
        return "sa2depth"
    if "state_dict" in file.content and "pytorch-lightning_version" in file.content:
        return "lightning"
    inner = file.content.get("model", file.content)
    names = inner if isinstance(inner, Mapping) else {}
    # The released network's bin predictor: no encoder checkpoint has one.
    return (
        "released"
        if any(str(name).removeprefix("module.").startswith(_RELEASED_NAME) for name in names)
        else None
    )


def interpret(file: WeightFile) -> Checkpoint:
    """The model that a file holds.

    Args:
        file: From `read_file`.

    Returns:
        Architecture and tensors under our names.

    Raises:
        CheckpointError: It is not an SA2Depth model, or its parts do not fit together.
    """
    kind = identify(file)
    if kind == "sa2depth":
        return _from_ours(file)
    return _from_lightning(file) if kind == "lightning" else _from_released(file)


def build(
    checkpoint: Checkpoint,
    *,
    min_depth: float | None = None,
    max_depth: float | None = None,
    trusted: Sequence[str] | None = (),
) -> nn.Module:
    """The model of a checkpoint with its weights, in eval mode on the CPU.

    Args:
        checkpoint: From `read_checkpoint`.
        min_depth: Metres; needed if the file lacks it, otherwise it must agree with the file.
        max_depth: Metres; needed like ``min_depth``.
        trusted: Names that the file may use besides layers of sa2depth, see `load_model`; ``None`` allows all, for a
            file that this process wrote.

    Returns:
        The model.

    Raises:
        CheckpointError: The depth range is missing or contradicts the file, classes are not trusted or cannot be
            imported, or tensors do not fit the architecture.
    """
    spec = copy.deepcopy(checkpoint.spec)
    _settle_range(checkpoint, spec, min_depth=min_depth, max_depth=max_depth)
    try:
        model: nn.Module = build_model(spec, trusted=None if trusted is None else (*_TRUSTED, *trusted))
    except UntrustedError as error:
        raise _untrusted(checkpoint.path, error) from error
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.path} describes a model that cannot be built: {error}") from error
    load_strictly(model, checkpoint.state, checkpoint.path)
    logger.info("%s: %s, %d tensors loaded", checkpoint.path, checkpoint.architecture, len(checkpoint.state))
    return model.eval()


def save_model(
    model: nn.Module, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None
) -> Path:
    """Write a model as safetensors with its architecture in the header, atomically.

    Args:
        model: A model from ``models.build_model`` or ``create_model``; it carries its ``spec``.
        path: The file, by convention ``.safetensors``; an existing one is replaced.
        extra: Further information about the model (scores, protocol, experiment); plain JSON values.

    Returns:
        The path written.

    Raises:
        CheckpointError: The model does not carry its architecture, ``extra`` is not JSON, or the file cannot be
            written.
    """
    target = Path(path).expanduser()
    spec = getattr(model, "spec", None)
    if not isinstance(spec, Mapping):
        raise CheckpointError(
            "the model does not carry its architecture (model.spec), so its file could not be read again: "
            "make it with sa2depth.create_model, sa2depth.load_model or models.build_model"
        )
    header = {
        "format": FORMAT_VERSION,
        "version": __version__,
        "spec": dict(spec),
        "extra": dict(extra or {}),
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"spec and extra must be plain JSON values to be saved with {target}: {error}"
        ) from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        with atomic_path(target) as temporary:
            save_file(tensors, temporary, metadata={_HEADER: text, "format": "pt"})
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:  # for example a full disk
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    return target


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """``load_state_dict`` with a readable error.

    Args:
        module: The module that receives the tensors.
        state: Tensors under the module's names.
        path: The file, for the error message.

    Raises:
        CheckpointError: Tensors are missing, left over, or of another shape; the message counts them and names three.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{path} does not fit the model: {len(own) - len(missing) - len(shapes)} of {len(own)} tensors "
            "match"
            + _listing("missing in the file", missing)
            + _listing("unknown to the model", unexpected)
            + _listing("other shape", shapes)
        )
    module.load_state_dict(dict(state), strict=True)


def _untrusted(path: Path, error: UntrustedError) -> CheckpointError:
    """The error that names the classes, the file, and every way to trust them."""
    names = ", ".join(
        name if name == home else f"{name} (really {home})"
        for name, home in zip(error.names, error.homes, strict=True)
    )
    roots = packages(error.homes)
    if "sa2depth" in packages(error.names):
        return CheckpointError(
            f"{path} names {names}, which is not trusted: a model consists of sa2depth.models and sa2depth.nn, so this "
            "file was altered; get it again from its author"
        )
    listed = roots[0] if len(roots) == 1 else f"[{','.join(roots)}]"
    options = " ".join(f"--trusted {root}" for root in roots)
    return CheckpointError(
        f"{path} names {names}, which is not trusted: loading it would import and call code outside of sa2depth, and a "
        f"file may come from a stranger. If you know this code, add trusted={listed} (sa2depth.eval), {options} "
        f"(sa2depth predict and others), or load_model(..., trusted={roots!r})"
    )


def _listing(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; {len(names)} {what}: {', '.join(names[:3])}{more}"


def _refuse_preset_name(path_or_name: str | os.PathLike[str]) -> None:
    name = os.fspath(path_or_name)
    if name in PRESETS and not Path(name).exists():
        raise CheckpointError(
            f"no weights are published for '{name}': give the path of a checkpoint, or create the untrained "
            f"network with sa2depth.create_model('{name}', min_depth=..., max_depth=...)"
        )


def _from_ours(file: WeightFile) -> Checkpoint:
    try:
        header = json.loads(file.metadata[_HEADER])
        spec, version = header["spec"], header.get("version")
        number = int(header.get("format", FORMAT_VERSION))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file.path} has a damaged header ({error!r}): fetch or save it again"
        ) from error
    if number > FORMAT_VERSION:
        raise CheckpointError(
            f"{file.path} has format {number}, written by sa2depth {version}; this is {__version__}, which "
            f"reads formats up to {FORMAT_VERSION}: upgrade sa2depth"
        )
    return Checkpoint(
        file.path, "sa2depth", spec, file.content, _describe(spec), version, dict(header.get("extra") or {})
    )


def _from_lightning(file: WeightFile) -> Checkpoint:
    hyper = file.content.get("hyper_parameters") or {}
    spec = hyper.get("spec") if isinstance(hyper, Mapping) else None
    if not isinstance(spec, Mapping):
        raise CheckpointError(
            f"{file.path} is a Lightning checkpoint of another program: it lacks hyper_parameters['spec'], which "
            "sa2depth.train writes"
        )
    state = {
        name.removeprefix(_LIGHTNING_PREFIX): tensor
        for name, tensor in file.content["state_dict"].items()
        if name.startswith(_LIGHTNING_PREFIX)
    }
    version = hyper.get("version")
    return Checkpoint(
        file.path,
        "lightning",
        copy.deepcopy(dict(spec)),
        state,
        _describe(spec),
        str(version) if version else None,
    )


def _from_released(file: WeightFile) -> Checkpoint:
    try:
        state = from_official(file.content)
        name = architecture_of(state)
    except CheckpointError as error:
        raise CheckpointError(
            f"{file.path} is not an SA2Depth model: {error}. If it holds only an encoder, use it as the "
            "pretrained encoder of a new model instead"
        ) from error
    return Checkpoint(file.path, "released", copy.deepcopy(dict(PRESETS[name])), state, name)


def _describe(spec: Mapping[str, Any]) -> str:
    """A name for people: the preset with these parts, or the class of the encoder."""
    parts = {key: value for key, value in spec.items() if key not in ("min_depth", "max_depth")}
    for name, preset in PRESETS.items():
        if parts == {key: value for key, value in preset.items() if key not in ("min_depth", "max_depth")}:
            return name
    encoder = spec.get("encoder")
    if not isinstance(encoder, Mapping):
        return "SA2Depth"
    kind = str(encoder.get("_target_", "unknown")).rpartition(".")[2]
    return f"SA2Depth with {kind} {encoder['name']}" if "name" in encoder else f"SA2Depth with {kind}"


def _settle_range(
    checkpoint: Checkpoint, spec: dict[str, Any], *, min_depth: float | None, max_depth: float | None
) -> None:
    """Put the depth range into the spec, or raise an error that says why not."""
    given = {"min_depth": min_depth, "max_depth": max_depth}
    missing = [key for key, value in given.items() if value is None and spec.get(key) is None]
    if missing:
        # OFFICIAL: the released scripts default to 0.1 m in training and 1e-3 m in evaluation, and the file holds
        # neither. The choice shifts every bin centre, by 9 % at 1 m, so it must not be guessed.
        raise CheckpointError(
            f"{checkpoint.path} ({checkpoint.architecture}) does not hold its depth range, which shifts "
            f"every bin centre: give {' and '.join(missing)} in metres. The released training script used "
            "min_depth 0.1, its evaluation script 1e-3 (depths at 1 m differ by up to 9 %); max_depth is 10 "
            "for NYU, 80 for KITTI"
        )
    for key, value in given.items():
        if value is None:
            continue
        said = spec.get(key)
        if said is not None and float(said) != float(value):
            raise CheckpointError(
                f"{checkpoint.path} was trained with {key} {said:g} m, but {value:g} m was given: leave "
                f"{key} out; it comes from the file"
            )
        spec[key] = float(value)
