"""Sizes of the kernels' tiles."""


def power_of_two(number: int) -> int:
    """The smallest that is not less: what Triton's ranges are."""
    return 1 << (number - 1).bit_length()
