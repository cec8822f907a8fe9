"""What the programs share: configuration to objects, the printed plan, the files that a run leaves."""
