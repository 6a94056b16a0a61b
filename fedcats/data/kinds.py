"""What kind of image a file is, by its name and by how it begins, whether fedcats reads it or not.

An image that cannot be read must not go unnoticed among those that can.
"""

import re

_READ = """
.jpg .jpeg .jpe .jfif .mpo .png .apng .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm
.avif .avifs .jp2 .j2k .jpf .jpx .jpc .j2c"""
_NOT_READ = """
.heic .heif .heics .heifs .hif .jxl .jxr .wdp .hdp .bpg .psd .psb .xcf .svg .svgz .ico .tga
.exr .hdr .qoi .pcx .dcm .dicom .fits .raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf
.rw2 .rwl .raf .pef .srw .x3f .3fr .erf .kdc .dcr .mrw .mos .mef .iiq .gpr"""
EXTENSIONS = frozenset((_READ + _NOT_READ).split())
"""File names that promise an image; what the file really is, its content decides."""

START_BYTES = 132
"""How much of a file `kind_of` needs."""

RAW = "RAW"

_KINDS = {
    "AVIF": rb".{4}ftyp(?:avi[fs]|(?:mif1|msf1).{4}(?:.{4})*?avi[fs])",
    "HEIC": rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)",
    RAW: rb".{4}ftypcrx |II\*\x00.{4}CR|II(?:RO|RS|U\x00)|MMOR|II\x1a\x00{3}HEAP|FUJIFILMCCD|FOVb",
    "JPEG XL": rb"\xff\x0a|\x00{3}\x0cJXL \r\n\x87\n",
    "JPEG 2000": rb"\x00{3}\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "JPEG XR": rb"II\xbc",
    "Photoshop": rb"8BPS",
    "GIMP": rb"gimp xcf",
    "SVG": rb"(?:\xef\xbb\xbf)?\s*(?:<[?!].*?)?<svg",
    "ICO": rb"\x00\x00\x01\x00.\x00",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?RADIANCE",
    "BPG": rb"BPG\xfb",
    "QOI": rb"qoif",
    "DICOM": rb".{128}DICM",
    "FITS": rb"SIMPLE  =",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]",
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG",
    "GIF": rb"GIF8",
    "BMP": rb"BM.{4}\x00{4}",
    "WebP": rb"RIFF.{4}WEBP",
}
_PATTERNS = {kind: re.compile(pattern, re.DOTALL) for kind, pattern in _KINDS.items()}


def kind_of(content: bytes) -> str | None:
    """Name the kind of image that a file is by how it begins; None when it is none of those."""
    start = content[:START_BYTES]
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.match(start)), None)
