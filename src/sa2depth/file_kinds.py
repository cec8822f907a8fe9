"""Recognise a file that is not an image by its first bytes, and say what to do about it."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_FFMPEG = "a video: extract its frames first, for example with `ffmpeg -i VIDEO frames/%05d.png`"
_ARCHIVE = "an archive: unpack it first"
_WEB_PAGE = "a web page: the download failed, or its address was that of a page about the image"
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file: run `git lfs pull`"),
    (b"\x93NUMPY", "a NumPy array (pass it as an array in Python)"),
    (b"%PDF", "a PDF document: export its pictures"),
    (b"PK\x03\x04", _ARCHIVE),
    (b"\x1f\x8b", _ARCHIVE),
    (b"Rar!", _ARCHIVE),
    (b"7z\xbc\xaf", _ARCHIVE),
    (b"\x1a\x45\xdf\xa3", _FFMPEG),
    (b"\x00\x00\x01\xba", _FFMPEG),
    (b"FLV", _FFMPEG),
)


def kind_of(head: bytes) -> str | None:
    """Describe, for people, a file that Pillow could not read; None if its kind is not known here.

    Args:
        head: the first few thousand bytes of the file.
    """
    if not head:
        return "an empty file (0 bytes)"
    if head[4:8] == b"ftyp":
        return _of_container(head[8:12])
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _FFMPEG
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return _WEB_PAGE
    if start.startswith((b"<svg", b"<?xml")):
        return "a drawing (SVG) or other XML: export it as PNG"
    return "text" if _is_text(head) else None


def _of_container(brand: bytes) -> str | None:
    if brand in _HEIC:
        return "a HEIC photograph, which is not supported: export it as JPEG or PNG first"
    if brand in (b"avif", b"avis"):
        return None
    if brand == b"crx ":
        return "raw camera data: develop it to JPEG, PNG or TIFF first"
    return _FFMPEG


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the head ends inside a letter
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\t\r\n\f" for letter in text)
