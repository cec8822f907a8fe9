"""`sa2depth convert`: turns a released file or a training checkpoint into our safetensors."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sa2depth.cli.options import Trusted
from sa2depth.errors import ConfigError
from sa2depth.stages import stage


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A released .pth, or a .ckpt or .safetensors of ours.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The .safetensors file to write.")],
    min_depth: Annotated[
        float | None, typer.Option(help="Metres; needed for released files, which do not store it.")
    ] = None,
    max_depth: Annotated[
        float | None, typer.Option(help="Metres; needed for released files, which do not store it.")
    ] = None,
    trusted: Trusted = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")] = False,
) -> None:
    """Convert weights to one safetensors file that carries its architecture and depth range."""
    if target.suffix != ".safetensors":
        raise ConfigError(
            f"{target}: this command writes safetensors, so name the file {target.with_suffix('.safetensors')}"
        )
    if target.exists() and not force:
        raise ConfigError(f"{target} exists: choose another name, or replace it with --force")

    with stage("loading PyTorch"):
        from sa2depth.targets import parse_trusted
        from sa2depth.weights.checkpoint import build, read_checkpoint, save_model

    known = parse_trusted(trusted, "--trusted")
    with stage("converting"):
        checkpoint = read_checkpoint(source)
        model = build(checkpoint, min_depth=min_depth, max_depth=max_depth, trusted=known)
        save_model(
            model,
            target,
            extra={**checkpoint.extra, "converted_from": source.name, "source_kind": checkpoint.kind},
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    spec: dict[str, Any] = getattr(model, "spec")  # noqa: B009 - nn.Module has no static type for it
    print(f"read          {source} ({checkpoint.kind})")
    print(f"architecture  {checkpoint.architecture}")
    print(f"tensors       {len(checkpoint.state)} of {len(model.state_dict())} matched, none left over")
    print(f"parameters    {parameters:,}")
    print(f"depth range   {spec['min_depth']:g} to {spec['max_depth']:g} m")
    print(f"wrote         {target} ({target.stat().st_size / 1e6:.1f} MB)")
