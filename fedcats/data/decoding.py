"""From the bytes of a file to an RGB image, or to the reason why there is none."""

import io
import itertools
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fedcats.data.kinds import RAW, kind_of
from fedcats.errors import first_line

Image.init()  # registers the readers; done here because it is not safe in several threads

FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
    if name in Image.OPEN
)
"""The kinds of image that are taken, by content and not by file name (names of Pillow)."""

MAX_PIXELS = 89_478_485
"""Pillow's own limit, above which it warns of a decompression bomb; here it is an error."""

SCALED = "scaled"
"""In ``Image.info`` of what `decode` returns: its grey was not 8 or 16 bits of full range."""

MAX_PIECES = 65_536
"""Chunks of a PNG, segments of a JPEG before its pixels and bytes between them, a PNM's header."""

_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_PNM_HEADER = re.compile(rb"P[1-7](?:(?:\s|#[^\r\n]*+)*+\d*+){3}")
_JPEG_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd8-\xfe])")  # without those inside of pixels


class BadImage(Exception):
    """A file cannot be used as an image; the message says why, in a few words."""


def decode(content: bytes) -> Image.Image:
    """Decode a whole image file.

    The EXIF orientation is applied, then the image is converted to RGB as torchvision's loader
    does it (grey is repeated, alpha dropped, CMYK converted, the first frame of several taken).
    Deep grey is scaled to 8 bits, where Pillow alone would clip it: integers of up to 8, 12 or 16
    bits by that depth, all others (32 bits, negative, floating point) by the range of the image's
    finite values; what is not finite becomes black.

    Parameters
    ----------
    content
        The bytes of the file. Its name plays no part, nor does what follows the image's end.

    Returns
    -------
    PIL.Image.Image
        In mode RGB, fully loaded.

    Raises
    ------
    BadImage
        When the content is empty, no image of the kinds in `FORMATS`, damaged, cut off, has more
        than `MAX_PIXELS` pixels, or values that give no picture.
    """
    if not content:
        raise BadImage("empty file")
    kind = kind_of(content)
    if kind == RAW:  # many begin as a TIFF with a small preview
        raise _unknown(kind)
    _check_pieces(content)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image)
            _check_end(image.format, content)
            if image.format == "TIFF" and _is_preview(image):
                raise _unknown(RAW)
            deep = any(";16" in str(tile[3]) for tile in image.tile)
            image.load()  # verify() would let a file through that is cut off
            rgb = _to_rgb(ImageOps.exif_transpose(image))
            if deep and not image.mode.startswith("I") and not (np.asarray(rgb) >> 4).any():
                raise BadImage("16-bit colours in their lowest 12 bits only: all black in 8 bits")
            return rgb
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise _unknown(kind) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(f"decompression bomb: more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # a damaged file can raise nearly anything in Pillow's readers
        if content.startswith(_PNG) and len(bare := _without_metadata(content)) < len(content):
            return decode(bare)  # Pillow refuses long texts and profiles
        reason = first_line(error)
        raise BadImage(f"damaged or cut off: {reason}") from None


def decode_square(content: bytes, size: int) -> Image.Image:
    """`decode`, then scaled (bilinear) to a square of so many pixels, as models are given it."""
    return decode(content).resize((size, size), Image.Resampling.BILINEAR)


def _unknown(kind: str | None) -> BadImage:
    read = kind is not None and kind.replace(" ", "").upper() in FORMATS
    variety = f" ({kind}{', but damaged or of a variety that is not read' if read else ''})"
    return BadImage("not an image of a known kind" + (variety if kind else ""))


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"decompression bomb: {width} x {height} is more than {MAX_PIXELS} pixels")


def _check_pieces(content: bytes) -> None:
    """Refuse what Pillow would read in so many small pieces that it takes minutes."""
    if content.startswith(_PNG):
        steps = sum(1 for _ in itertools.islice(_png_chunks(content), MAX_PIECES))
    elif content.startswith(_JPEG):
        steps = at = 0
        while steps < MAX_PIECES and at < len(content):
            found = _JPEG_MARKER.search(content, at)
            # What lies between pieces is read byte by byte.
            steps += 1 + (found.end() - 2 if found else len(content)) - at
            if not found or found[1] == b"\xda":
                break
            at = _behind(content, found)
    else:
        header = _PNM_HEADER.match(content)
        steps = header.end() if header else 0
    if steps >= MAX_PIECES:
        raise BadImage(f"more than {MAX_PIECES} pieces, as no camera or program writes")


def _check_end(kind: str | None, content: bytes) -> None:
    """Refuse a JPEG without an end marker after its last scan, and a PNG without its last chunk.

    A download that stopped may be padded with zeros; the decoder takes those for grey pixels.
    """
    no_end = (kind in ("JPEG", "MPO") and not _jpeg_ends(content)) or (
        kind == "PNG" and b"IEND" not in content
    )
    if no_end:
        raise BadImage("damaged or cut off: the end is missing")


def _jpeg_ends(content: bytes) -> bool:
    if content.rfind(b"\xff\xd9") >= content.rfind(b"\xff\xda"):
        return True
    # Behind the end anything may follow, such as a phone's video: go from marker to marker.
    scans = at = 0
    for _ in range(MAX_PIECES):
        found = _JPEG_MARKER.search(content, at)
        if not found or (found[1] == b"\xd9" and scans):
            return found is not None
        scans += found[1] == b"\xda"
        at = _behind(content, found)
    return False


def _behind(content: bytes, marker: re.Match[bytes]) -> int:
    """Where the piece ends that a marker begins; those of start and end stand alone."""
    alone = marker[1] in b"\xd8\xd9"
    return marker.end() + (0 if alone else int.from_bytes(content[marker.end() : marker.end() + 2]))


def _is_preview(image: Image.Image) -> bool:
    """Whether the first image of a TIFF is a camera's preview of its raw data (DNG, NEF, ARW)."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    return 50706 in tags or (int(tags.get(254, 0)) & 1 == 1 and 330 in tags)


def _without_metadata(png: bytes) -> bytes:
    """Leave out what is neither pixels nor needed for them."""
    kept = (chunk for kind, chunk in _png_chunks(png) if kind not in _PNG_METADATA)
    return b"".join((_PNG, *kept))


def _png_chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk's kind, and all of it."""
    at = len(_PNG)
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4])
        yield png[at + 4 : at + 8], png[at:end]
        at = end


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        pixels, scaled = _eight_bits(np.asarray(image))
        rgb = Image.fromarray(pixels).convert("RGB")
        if scaled:
            rgb.info[SCALED] = True
        return rgb
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for, by a warning, before RGB
    return image.convert("RGB")


def _eight_bits(grey: NDArray[np.generic]) -> tuple[NDArray[np.uint8], bool]:
    """Grey values of any type as 8 bits, and whether it took more than dropping 16 bits' lower."""
    if grey.dtype.kind in "iu" and grey.min() >= 0 and grey.max() < 1 << 16:
        depth = next(bits for bits in (8, 12, 16) if grey.max() < 1 << bits)
        return (grey.astype(np.uint16) >> (depth - 8)).astype(np.uint8), depth < 16
    values = grey.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise BadImage("no pixel is a finite number")
    low, high = values[finite].min(), values[finite].max()
    if low == high:
        raise BadImage(f"every pixel is {low:g}: there is no range to scale by")
    values = (np.where(finite, values, low) - low) / (high - low)
    return np.rint(values * 255).astype(np.uint8), True
