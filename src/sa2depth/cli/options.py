"""Options that several commands share: one spelling, one help text."""

from typing import Annotated

import typer

Checkpoint = Annotated[
    str, typer.Option("--checkpoint", "-c", metavar="FILE", help="Weights in any known format.")
]
LegacyDepth = Annotated[
    float | None, typer.Option(help="Metres; only for released weights, which do not store it.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or e.g. cuda:1.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16.")]
Trusted = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PACKAGE",
        help="A package, module or class outside sa2depth that the weights may use; may be given several times.",
    ),
]
