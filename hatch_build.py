"""Build hook: compiles the CPU library into the package where there is a C++ compiler.

Without one, or if it fails, or with SA2DEPTH_BUILD_CPU=0, the installation goes on without the library and the
operators run in plain torch; one line says so.
"""

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = Path("src/sa2depth/ops/runtime/cpp")


class CpuLibraryHook(BuildHookInterface[Any]):
    """Puts ``libsa2depth_cpu.so`` into ``ops/runtime/cpp``: in place for editable installs, which run from there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and tag the wheel for this platform if it holds the library.

        Args:
            version: ``standard`` or ``editable``; either holds the library.
            build_data: hatchling's; artifacts and tag are set here.
        """
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        builder = _load(root / _PACKAGE / "build.py")
        library = root / _PACKAGE / builder.LIBRARY
        if os.environ.get(builder.SWITCH) == "0":
            if version == "editable":
                library.unlink(missing_ok=True)  # of an earlier installation
            self._say(f"{builder.SWITCH}=0: built without the CPU library; the operators run in plain torch")
            return
        try:
            builder.build(root / "csrc/cpu", root / _PACKAGE)
        except (builder.BuildError, OSError) as error:
            self._say(f"built without the CPU library, the operators run in plain torch: {error}")
            return
        build_data["artifacts"].append((_PACKAGE / builder.LIBRARY).as_posix())
        build_data["pure_python"] = False
        # ctypes loads it: any Python 3 of this platform will do
        build_data["tag"] = f"py3-none-{_platform()}"

    def _say(self, line: str) -> None:
        self.app.display_warning(f"sa2depth: {line}")


def _platform() -> str:
    if sys.platform == "darwin":
        # The library is for this processor only, which a universal Python's own tag would hide.
        from packaging.tags import mac_platforms

        machine = os.uname().machine
        return next(iter(mac_platforms(arch=machine)))
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _load(file: Path) -> ModuleType:
    """The builder as a module of its own: importing it from the package would import PyTorch."""
    spec = importlib.util.spec_from_file_location("sa2depth_build_cpu", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
