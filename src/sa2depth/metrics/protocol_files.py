"""Protocols by name, from YAML files and from composed configurations."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from sa2depth.errors import ConfigError, nearest
from sa2depth.metrics.protocol import Protocol
from sa2depth.metrics.protocol_fields import KINDS
from sa2depth.resources import conf_dir

ProtocolLike = str | Path | Mapping[str, Any] | DictConfig | Protocol
_REQUIRED = ("name", "version", "min_depth", "max_depth")


def load_protocol(source: ProtocolLike) -> Protocol:
    """Load a protocol by name, from a YAML file, or from the node that Hydra composed from ``conf/protocol``.

    Args:
        source: Name of a file in ``conf/protocol``, path of a ``.yaml`` file, a mapping of the fields, or a
            ``Protocol``, which is returned unchanged. If a mapping has the name of a shipped protocol but differs
            from it (``protocol.max_depth=5`` on the command line), the changed fields are added to its name; values
            that a shipped protocol leaves open (``custom``) may be given.

    Raises:
        ConfigError: A name or key is unknown (the nearest known ones are named), a key is missing, or a value is bad.
    """
    if isinstance(source, Protocol):
        return source
    if isinstance(source, (Mapping, DictConfig)):
        return _honest(_from_mapping(source, "the protocol's configuration"))
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = _shipped(str(source))
    if not path.is_file():
        known = sorted(file.stem for file in _shipped("any").parent.glob("*.yaml"))
        raise ConfigError(f"there is no protocol '{source}'; {nearest(Path(source).stem, known)}")
    return _from_mapping(_read(path), str(path))


def _shipped(name: str) -> Path:
    return conf_dir() / "protocol" / f"{name}.yaml"


def _read(path: Path) -> DictConfig:
    try:
        node = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of protocol fields")
    return node


def _from_mapping(node: Mapping[str, Any] | DictConfig, where: str) -> Protocol:
    values: Any = node
    if isinstance(node, DictConfig):
        if missing := sorted(str(key) for key in OmegaConf.missing_keys(node)):
            raise ConfigError(
                f"{where}: {', '.join(missing)} must be given: set "
                + " ".join(f"protocol.{key}=..." for key in missing)
            )
        try:
            values = OmegaConf.to_container(node, resolve=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}: {error}") from error
    known = [field.name for field in fields(Protocol)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'; {nearest(str(key), known)}")
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given")
    return Protocol(**{str(key): value for key, value in values.items()})


def _honest(protocol: Protocol) -> Protocol:
    """Rename a protocol that has a shipped name but other values: its scores are not those of the shipped one."""
    if not _shipped(protocol.name).is_file():
        return protocol
    node = _read(_shipped(protocol.name))
    left_open = {str(key): getattr(protocol, str(key)) for key in OmegaConf.missing_keys(node)}
    shipped = _from_mapping(OmegaConf.merge(node, left_open), protocol.name)  # type: ignore[arg-type]
    changed = [key for key in KINDS if getattr(protocol, key) != getattr(shipped, key)]
    return replace(protocol, name=f"{protocol.name} (changed: {', '.join(changed)})") if changed else protocol
