"""Checking a data set on disk: files, images, depth, leaks between splits."""
