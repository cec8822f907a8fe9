"""Augmentation: random changes of training samples, and fixed treatments of borders."""
