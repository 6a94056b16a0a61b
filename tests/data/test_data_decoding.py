"""Images of every kind and depth: usable, or refused for the true reason; never all black."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedcats.data import folder_source, prepare
from fedcats.data.decoding import BadImage, decode
from fedcats.errors import UserError

RNG = np.random.default_rng(5)
GREY = RNG.random((8, 8)).astype(np.float32)
GREY[0, :2] = 0, 1


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values):
    return saved(Image.fromarray(values), "TIFF")


def pixels(content):
    return np.asarray(decode(content))


@pytest.mark.parametrize(
    "values",
    [
        GREY,
        GREY * 1e30,
        GREY * 1e-30,
        GREY * 255,
        GREY - 5,
        np.where(GREY > 0.5, GREY, np.nan).astype(np.float32),
        np.where(GREY == 1, np.inf, GREY).astype(np.float32),
        (GREY * 2e9).astype(np.int32),
        (GREY * 100 - 50).astype(np.int32),
        (GREY * 255).astype(np.int32),
        (GREY * 4095).astype(np.int32),
        (GREY * 255).astype(np.uint16),
        (GREY * 4095).astype(np.uint16),
        (GREY * 65535).astype(np.uint16),
    ],
)
def test_grey_of_any_depth_fills_the_range(values):
    image = pixels(tiff(values))
    assert image.shape == (8, 8, 3)
    assert image.min() == 0
    assert image.max() >= 250
    finite = np.isfinite(values)
    order = np.argsort(values[finite], kind="stable")
    assert (np.diff(image[..., 0][finite][order].astype(int)) >= 0).all()
    assert (image[~finite] == 0).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("high", [4096, 30_000, 65535])
def test_16_bits_of_full_range_lose_their_lower_half(kind, high):
    values = np.linspace(0, high, 64).astype(np.uint16).reshape(8, 8)
    assert np.array_equal(pixels(saved(Image.fromarray(values), kind))[..., 0], values >> 8)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (GREY * 0 + 3, "every pixel is 3: there is no range to scale by"),
        (GREY * np.nan, "no pixel is a finite number"),
        ((GREY * 0).astype(np.int32) + 100_000, "every pixel is 100000"),
    ],
)
def test_values_that_give_no_picture(values, reason):
    with pytest.raises(BadImage, match=reason):
        decode(tiff(values))


def png_16(values):
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_deep_colours():
    values = RNG.integers(0, 65536, (5, 6, 3))
    assert np.array_equal(pixels(png_16(values)), values >> 8)
    with pytest.raises(BadImage, match="16-bit colours in their lowest 12 bits only"):
        decode(png_16(values >> 4))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_of_a_tiff(mode):
    image = Image.fromarray(RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode)
    assert pixels(saved(image, "TIFF")).std() > 10


def photo(seed=0):
    coarse = Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    )
    return saved(coarse.resize((40, 40), Image.Resampling.BICUBIC), "JPEG", quality=90)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 1 << 32))
def test_anything_may_follow_a_jpeg(start, seed):
    content = photo()
    behind = start + np.random.default_rng(seed).bytes(20_000)
    assert np.array_equal(pixels(content + behind), pixels(content))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_refused_wherever_it_is_cut(progressive):
    image = Image.open(io.BytesIO(photo()))
    thumbnail = b"Exif\0\0" + saved(image.resize((8, 8)), "JPEG")  # it has an end of its own
    content = saved(image, "JPEG", progressive=progressive, exif=thumbnail)
    decode(content)
    for at in range(0, len(content) - 2, 7):
        with pytest.raises(BadImage):
            decode(content[:at])


UNREAD = {
    "HEIC": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic",
    "HEIC ": b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic",
    "JPEG XL": b"\xff\x0a",
    "RAW": b"II*\0\x10\0\0\0CR\2\0",
    "RAW ": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "RAW  ": b"FUJIFILMCCD-RAW 0201",
    "Photoshop": b"8BPS\0\1",
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn --><svg xmlns="">',
    "DICOM": bytes(128) + b"DICM",
}


@pytest.mark.parametrize("kind", UNREAD)
def test_kinds_that_are_not_read_are_named(kind):
    with pytest.raises(BadImage, match=rf"not an image of a known kind \({kind.strip()}\)"):
        decode(UNREAD[kind] + photo())


def test_a_cameras_raw_data_is_not_taken_for_its_preview():
    image = Image.open(io.BytesIO(photo()))
    with pytest.raises(BadImage, match=r"not an image of a known kind \(RAW\)"):
        decode(saved(image, "TIFF", tiffinfo={50706: b"\1\4\0\0"}))
    assert decode(saved(image, "TIFF", tiffinfo={254: 1})).size == (40, 40)


def test_images_that_cannot_be_read_count_as_bad(tmp_path):
    """By name or content; a video, a text or a sidecar is no image."""
    for kind in ("cat", "dog"):
        (tmp_path / "d" / kind).mkdir(parents=True)
        for n in range(4):
            (tmp_path / "d" / kind / f"{n}.JPG").write_bytes(photo(n + 10 * (kind == "dog")))
    bad = ("a.HEIC", "b.jxl", "c.nef", "d.svg", "e.jpg", "without ending")
    for name, content in zip(
        bad, (UNREAD["HEIC"],) * 3 + (b"",) + (UNREAD["HEIC"],) * 2, strict=True
    ):
        (tmp_path / "d/cat" / name).write_bytes(content)
    for name, content in {
        "IMG.MOV": b"\0\0\0\x14ftypqt  ",
        "IMG.AAE": b"<?xml",
        "a.wav": b"RIFF",
    }.items():
        (tmp_path / "d/dog" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"6 of 14 files cannot be used.*\(HEIC\)"):
        prepare(folder_source(tmp_path / "d", 0.25, 0), tmp_path / "cache", size=8)
    data = prepare(
        folder_source(tmp_path / "d", 0.25, 0), tmp_path / "cache", size=8, max_bad_fraction=None
    )
    assert {path for path, _ in data.audit.quarantined} == {f"cat/{name}" for name in bad}
    assert data.audit.ignored == ("dog/IMG.AAE", "dog/IMG.MOV", "dog/a.wav")


def test_a_folder_of_one_unreadable_kind_says_which(tmp_path):
    for path in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "d" / path).mkdir(parents=True)
        for n in range(3):
            (tmp_path / "d" / path / f"{n}.heic").write_bytes(UNREAD["HEIC"] + bytes([n]))
    source = folder_source(tmp_path / "d", 0.25, 0)
    with pytest.raises(UserError, match=r"12 of 12 files cannot be used.*known kind \(HEIC\)"):
        prepare(source, tmp_path / "cache", size=8)
    with pytest.raises(UserError, match=r"no usable image of class 'cat' is left.*\(HEIC\)"):
        prepare(source, tmp_path / "cache", size=8, max_bad_fraction=1.0)


def test_scaled_grey_is_other_data_in_the_stores_keys(tmp_path):
    for kind, values in {"a": GREY, "b": (GREY * 65535).astype(np.uint16)}.items():
        (tmp_path / "d" / kind).mkdir(parents=True)
        for n in range(4):
            (tmp_path / "d" / kind / f"{n}.tif").write_bytes(tiff(np.roll(values, n + 1)))
    scaled = prepare(folder_source(tmp_path / "d", 0.25, 0), tmp_path / "cache", size=8).train
    assert scaled.transform.endswith(", grey scaled")
    for n in range(4):
        (tmp_path / "d/a" / f"{n}.tif").write_bytes(tiff((np.roll(GREY, n) * 60000).astype("u2")))
    plain = prepare(folder_source(tmp_path / "d", 0.25, 0), tmp_path / "cache", size=8).train
    assert "scaled" not in plain.transform


def _flooded(kind):
    """A small image with pieces or comments without end."""
    buffer = io.BytesIO()
    if kind in ("chunks", "comment"):
        Image.new("RGB", (9, 9)).save(buffer, "PNG" if kind == "chunks" else "PPM")
    else:
        Image.new("RGB", (9, 9)).save(buffer, "JPEG")
    image = buffer.getvalue()
    at, piece = {
        "chunks": (33, struct.pack(">I", 1) + b"tEXtk" + struct.pack(">I", zlib.crc32(b"tEXtk"))),
        "comment": (3, b"# a comment\n"),
        "segments": (2, b"\xff\xfe\x00\x02"),
        "escapes": (2, b"\xff\x00"),
        "fill": (2, b"\xff"),
    }[kind]
    return lambda count: image[:at] + piece * count + image[at:]


@pytest.mark.parametrize("kind", ["chunks", "comment", "segments", "escapes", "fill"])
def test_what_would_be_read_in_tiny_pieces_is_refused(kind):
    flooded = _flooded(kind)
    assert decode(flooded(3)).size == (9, 9)
    with pytest.raises(BadImage, match="more than 65536 pieces"):
        decode(flooded(70_000))


def test_restart_markers_without_end_are_gone_through_at_once():
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "JPEG")
    with pytest.raises(BadImage, match="the end is missing"):
        decode(buffer.getvalue()[:-2] + b"\xff\xd0" * 500_000)
