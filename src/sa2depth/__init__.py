"""SA2Depth: metric depth from one image.

``create_model`` builds a network by name, ``load_model`` reads one from a checkpoint. Both are imported on
first use, so that ``import sa2depth`` stays light.
"""

from typing import TYPE_CHECKING, Any

from sa2depth import threads
from sa2depth.version import __version__

threads.wait_briefly()  # must run before PyTorch loads OpenMP; every program imports this package first
threads.one_thread_after_fork()

if TYPE_CHECKING:
    from sa2depth.factory import create_model
    from sa2depth.weights import load_model

__all__ = ["__version__", "create_model", "load_model"]


def __getattr__(name: str) -> Any:
    """Import the public functions on first use (PEP 562)."""
    if name == "create_model":
        from sa2depth.factory import create_model

        return create_model
    if name == "load_model":
        from sa2depth.weights import load_model

        return load_model
    raise AttributeError(f"module 'sa2depth' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
