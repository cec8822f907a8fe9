"""Pictures as data URIs, shrunk if the page would become too large to send."""

import base64
import io
from pathlib import Path

from PIL import Image

from sa2depth.errors import DataError

_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_WIDTHS_PX = (2000, 1600, 1200, 900, 600, 400)
_QUALITY = 85


def data_uri(path: Path, most_bytes: int) -> str:
    """A picture file as a ``data:`` URI.

    A PNG, JPEG or WebP file that is small enough is embedded unchanged; any other is written as WebP, as large as
    ``most_bytes`` allows.

    Args:
        path: A picture.
        most_bytes: Largest size of the file before base64, which adds a third.

    Returns:
        ``data:image/...;base64,...``.

    Raises:
        DataError: The file is not a picture or is cut short.
    """
    try:
        raw = path.read_bytes()
        with Image.open(io.BytesIO(raw)) as image:
            kind = _AS_THEY_ARE.get(image.format or "")
            image.load()
            if kind is None or len(raw) > most_bytes:
                raw, kind = _smaller(image.convert("RGB"), most_bytes), "image/webp"
    except Exception as error:  # Pillow may raise anything on a damaged file
        raise DataError(f"{path} is not a readable picture ({error})") from error
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def _smaller(image: Image.Image, most_bytes: int) -> bytes:
    raw = b""
    for width in (w for w in (image.width, *_WIDTHS_PX) if w <= image.width):
        size = (width, max(1, round(image.height * width / image.width)))
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=_QUALITY)
        raw = buffer.getvalue()
        if len(raw) <= most_bytes:
            break
    return raw
