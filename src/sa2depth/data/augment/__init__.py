"""Augmentation: random changes of training samples, and fixed handling of borders."""
