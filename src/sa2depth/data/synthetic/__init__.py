"""Ray-cast synthetic rooms and streets, the embedded default data set."""

from sa2depth.data.synthetic.source import SyntheticScenes

__all__ = ["SyntheticScenes"]
