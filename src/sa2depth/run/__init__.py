"""Code that the programs share: objects from a configuration, the printed plan, the files of a run."""
