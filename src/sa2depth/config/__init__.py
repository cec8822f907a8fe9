"""Between Hydra and the programs: checking what was composed, and speaking to people when it is wrong."""

from sa2depth.config.check import check_config
from sa2depth.config.launch import launch

__all__ = ["check_config", "launch"]
