"""Measure speed and memory; one run measures every figure together with those that it is compared with."""
