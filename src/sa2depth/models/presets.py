"""Named architectures: specifications that the configuration tree composes, read when they are asked for.

``sa2depth_t``, ``_s`` and ``_l`` stand on InternImage-T, -S and -L; T and L are the released sizes.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl  # noqa: PLC2701
from hydra._internal.utils import create_config_search_path  # noqa: PLC2701
from hydra.types import RunMode
from omegaconf import OmegaConf

from sa2depth.resources import conf_dir

_OF_THE_DATA = ("min_depth", "max_depth")


class _Presets(Mapping[str, dict[str, Any]]):
    """Specifications by the name of a file in ``conf/model``."""

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in list(self):
            raise KeyError(name)
        return deepcopy(_composed(name))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(file.stem for file in (conf_dir() / "model").glob("*.yaml")))

    def __len__(self) -> int:
        return len(list(iter(self)))


@cache
def _composed(name: str) -> dict[str, Any]:
    # not hydra.compose, which would take the place of the user's own Hydra application
    loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
    overrides = [f"model={name}", *(f"+{key}=null" for key in _OF_THE_DATA)]
    config = loader.load_configuration("network", overrides, RunMode.RUN, from_shell=False)
    spec = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(spec, dict)
    return {str(key): value for key, value in spec.items() if key not in _OF_THE_DATA}


# OFFICIAL: `encoder='small'` of the released code is InternImage-T; it has no S.
PRESETS: Mapping[str, dict[str, Any]] = _Presets()
"""Specifications by name, without ``min_depth`` and ``max_depth``: these belong to the data."""
