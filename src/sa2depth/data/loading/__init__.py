"""From sources to batches: the torch data set, the data module, samplers, their speed."""
