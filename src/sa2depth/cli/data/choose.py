"""Turn a data set's name on the command line into its sources.

The name is a file of ``conf/data``, so `check`, `show` and `speed` read the same files as training and evaluation.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sa2depth.errors import ConfigError, DataError, nearest
from sa2depth.resources import conf_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sa2depth.data.loading.datamodule import DepthDataModule
    from sa2depth.data.sample import Source

SPLITS = ("train", "val", "test")


def compose_data(
    dataset: str, root: Path | None = None, overrides: Sequence[str] = (), augment: str | None = None
) -> "DictConfig":
    """The configuration of an evaluation on a data set.

    Args:
        dataset: a file of ``conf/data``.
        root: folder of the data set, instead of the one below ``paths.data_dir``.
        overrides: as on the command line of training, for example ``data.train.split=24231``.
        augment: a file of ``conf/augment``; None: no augmentation.

    Raises:
        ConfigError: a name or option is unknown; the message suggests the nearest.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _require_choice("data", dataset, "data set")
    words = [f"data={dataset}"]
    if augment is not None:
        _require_choice("augment", augment, "augmentation")
        words.append(f"augment={augment}")
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(
                f"'{override}' is not an override: write KEY=VALUE, e.g. data.train.split=24231"
            )
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            cfg = compose("eval", overrides=[*words, *overrides])
        except (HydraException, OmegaConfBaseException) as error:
            plain = OmegaConf.to_container(compose("eval", overrides=words), resolve=False)
            raise ConfigError(_explain(error, overrides, set(_keys(plain)))) from error
    if root is not None:
        _set_root(cfg, dataset, root)
    return cfg


def build_sources(
    cfg: "DictConfig", splits: Iterable[str] = SPLITS
) -> tuple[dict[str, "Source"], dict[str, str]]:
    """The sources of some splits, whether or not their files exist.

    Args:
        cfg: from `compose_data`.
        splits: some of ``train``, ``val``, ``test``.

    Returns:
        The sources of the splits that exist, and the errors of splits that could not be listed.

    Raises:
        ConfigError: an option is invalid, or none of the splits exists.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from sa2depth.data.source import missing_files_allowed

    sources: dict[str, Source] = {}
    unlisted: dict[str, str] = {}
    wanted = list(splits)
    for split in wanted:
        if cfg.data.get(split) is None:
            continue
        try:
            with missing_files_allowed():
                sources[split] = instantiate(cfg.data[split])()
        except DataError as error:
            unlisted[split] = str(error)
        except (InstantiationException, TypeError) as error:
            raise ConfigError(f"data.{split} cannot be built: {error.__cause__ or error}") from error
    if not sources and not unlisted:
        has = ", ".join(split for split in SPLITS if cfg.data.get(split) is not None) or "none"
        raise ConfigError(f"this data set has no {' or '.join(wanted)} split; it has: {has}")
    return sources, unlisted


def require_source(cfg: "DictConfig", splits: Sequence[str]) -> tuple[str, "Source"]:
    """The first of some splits that a data set has, with its name.

    Raises:
        ConfigError: see `build_sources`.
        DataError: it cannot be listed.
    """
    for split in splits:
        if cfg.data.get(split) is not None:
            sources, unlisted = build_sources(cfg, [split])
            if split in unlisted:
                raise DataError(unlisted[split])
            return split, sources[split]
    build_sources(cfg, splits)
    raise AssertionError("build_sources refuses a configuration without these splits")


def build_module(cfg: "DictConfig") -> "DepthDataModule":
    """The data module, exactly as training uses it.

    Raises:
        ConfigError: an option is invalid.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        module: DepthDataModule = instantiate(cfg.data)
    except InstantiationException as error:
        raise ConfigError(str(error.__cause__ or error)) from error
    return module


def _require_choice(group: str, name: str, noun: str) -> None:
    known = [file.stem for file in (conf_dir() / group).glob("*.yaml")]
    if name not in known:
        raise ConfigError(f"there is no {noun} '{name}'; {nearest(name, known)}")


def _set_root(cfg: "DictConfig", dataset: str, root: Path) -> None:
    from omegaconf import OmegaConf

    given = [cfg.data[split] for split in SPLITS if cfg.data.get(split) is not None]
    given = [node for node in given if "root" in node]
    if not given:
        raise ConfigError(f"--root: data set '{dataset}' has no folder: leave --root out")
    for node in given:
        OmegaConf.update(node, "root", str(root.expanduser()))


def _explain(error: Exception, overrides: Sequence[str], known: set[str]) -> str:
    """A message that names the wrong override and the nearest known names."""
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0]
        if key not in known and not override.startswith("+") and "/" not in key and "@" not in key:
            return f"unknown option {key}; {nearest(key, known)}"
    return str(error).strip().split("\n", 1)[0]


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name
            yield from _keys(value, name)
