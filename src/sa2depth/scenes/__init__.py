"""Ray-cast synthetic rooms and streets, the embedded default data set."""

from sa2depth.scenes.source import SyntheticScenes

__all__ = ["SyntheticScenes"]
