"""Check depth maps that have fewer pixels than their photograph, as those of phones and ScanNet do.

Such a map must show the same view: its pixel ``(y, x)`` of ``h x w`` covers the rows ``y H / h`` to ``(y + 1) H / h``
of the photograph, and columns likewise. Truth keeps its size for scoring; for training it is upsampled.
"""

Size = tuple[int, int]

TOLERANCE = 0.01
"""Largest relative difference of the two aspects. ScanNet's 968x1296 and 480x640 differ by 0.4 %, other formats (16:9
or 3:2 against 4:3) by more than 10 %. One pixel is always allowed, for the rounding of small maps."""


def same_view(depth: Size, image: Size) -> bool:
    """Whether a depth map of ``(h, w)`` may show all of a photograph of ``(H, W)`` with as many pixels or fewer."""
    (high, wide), (height, width) = depth, image
    if depth == image:
        return True
    if not (0 < high <= height and 0 < wide <= width):
        return False
    expected = height * wide / width, width * high / height
    return any(
        abs(found - wanted) <= max(1.0, TOLERANCE * wanted)
        for found, wanted in zip(depth, expected, strict=True)
    )


def why_not(depth: Size, image: Size, name: str) -> str | None:
    """Say why the size of a depth map does not fit its photograph; None if it fits.

    Args:
        depth: ``(h, w)`` of the map.
        image: ``(H, W)`` of the photograph, upright.
        name: name of the photograph.
    """
    if same_view(depth, image):
        return None
    found = f"found {depth[0]}x{depth[1]}"
    wanted = f"expected the size of its image {name}, {image[0]}x{image[1]}"
    if depth[0] > image[0] or depth[1] > image[1]:
        turned = depth[0] <= image[1] and depth[1] <= image[0]
        hint = (
            "it lies on its side"
            if turned
            else "it is larger: use a photograph of that size, or shrink the map"
        )
        return f"{wanted}, or a smaller one of its aspect, {found}; {hint}"
    return (
        f"{wanted}, or a smaller one of its aspect (as {round(image[0] * depth[1] / image[1])}x{depth[1]}), {found}: "
        "one of the two is cut or turned"
    )
