"""The `sa2depth` command: one file a sub-command, heavy imports inside them: help is instant."""

from sa2depth.cli.app import app

main = app

__all__ = ["app", "main"]
