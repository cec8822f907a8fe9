"""The code between Hydra and the programs: it checks the composed configuration and explains errors to people."""

from sa2depth.config.check import check_config
from sa2depth.config.launch import launch

__all__ = ["check_config", "launch"]
