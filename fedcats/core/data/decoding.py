"""From the bytes of a file to an RGB image, or to the reason why there is none."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""The kinds of image that are taken, by content and not by file name (names of Pillow)."""

Image.init()  # registers the readers; done here because it is not safe in several threads

MAX_PIXELS = 89_478_485
"""Pillow's own limit, above which it warns of a decompression bomb; here it is an error."""


class BadImage(Exception):
    """A file cannot be used as an image; the message says why, in a few words."""


def decode(content: bytes) -> Image.Image:
    """Decode a whole image file.

    The EXIF orientation is applied, then the image is converted to RGB as torchvision's loader
    does it (grey is repeated, alpha dropped, CMYK converted, the first frame of several taken).
    16-bit grey is scaled to 8 bits, where Pillow alone would clip it to white.

    Parameters
    ----------
    content
        The bytes of the file. Its name plays no part.

    Returns
    -------
    PIL.Image.Image
        In mode RGB, fully loaded.

    Raises
    ------
    BadImage
        When the content is empty, no image of the kinds in `FORMATS`, damaged, cut off, or has
        more than `MAX_PIXELS` pixels.
    """
    if not content:
        raise BadImage("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image)
            _check_end(image.format, content)
            image.load()  # verify() would let a file through that is cut off
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image of a known kind") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(f"decompression bomb: more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # a damaged file can raise nearly anything in Pillow's readers
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadImage(f"damaged or cut off: {reason}") from None


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"decompression bomb: {width} x {height} is more than {MAX_PIXELS} pixels")


def _check_end(kind: str | None, content: bytes) -> None:
    """Refuse a JPEG without an end marker after its last scan, and a PNG without its last chunk.

    A download that stopped may be padded with zeros; the decoder takes those for grey pixels.
    """
    no_end = {
        "JPEG": content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"),
        "MPO": content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"),
        "PNG": b"IEND" not in content,
    }
    if no_end.get(kind or "", False):
        raise BadImage("damaged or cut off: the end is missing")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for, by a warning, before RGB
    return image.convert("RGB")
