"""A thousand good images and every kind of bad file: all found, none refused."""

import functools
import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fedcats.data import AuditReport, folder_source, prepare, shared_between_shards
from fedcats.data.audit import Seen, find_near_duplicates, perceptual_hash
from fedcats.data.decoding import BadImage, decode
from fedcats.errors import UserError

RNG = np.random.default_rng(20)


def picture(mode="RGB", size=(24, 18)):
    bands = {"L": (), "I;16": ()}.get(mode, (len(Image.new(mode, (1, 1)).getbands()),))
    kind = np.uint16 if mode == "I;16" else np.uint8
    high = 65536 if mode == "I;16" else 256
    return Image.fromarray(RNG.integers(0, high, (size[1], size[0], *bands)).astype(kind))


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def cmyk():
    return picture().convert("CMYK")


def transparent_palette():
    image = picture().quantize(8)
    image.info["transparency"] = bytes([0, 128, 255, 255, 255, 255, 255, 255])
    return saved(image, "PNG")


GOOD = {
    "plain.jpg": lambda: saved(picture(), "JPEG"),
    "UPPER.JPEG": lambda: saved(picture(), "JPEG"),
    "progressive.jpg": lambda: saved(picture(), "JPEG", progressive=True),
    "grey.jpg": lambda: saved(picture("L"), "JPEG"),
    "cmyk.jpg": lambda: saved(cmyk(), "JPEG"),
    "turned.jpg": lambda: saved(picture(), "JPEG", exif=turned(6)),
    "odd_exif.jpg": lambda: saved(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "extra_bytes.jpg": lambda: saved(picture(), "JPEG") + b"\0" * 300 + b"appended by a camera",
    "alpha.png": lambda: saved(picture("RGBA"), "PNG"),
    "grey_alpha.png": lambda: saved(picture("LA"), "PNG"),
    "deep.png": lambda: saved(picture("I;16"), "PNG"),
    "palette.png": transparent_palette,
    "bits.png": lambda: saved(picture("L").convert("1"), "PNG"),
    "still.gif": lambda: saved(picture().quantize(32), "GIF"),
    "moving.gif": lambda: saved(
        picture().quantize(32), "GIF", save_all=True, append_images=[picture().quantize(32)]
    ),
    "gif_as.jpg": lambda: saved(picture().quantize(32), "GIF"),
    "png_as.jpg": lambda: saved(picture("RGBA"), "PNG"),
    "bmp_as.jpg": lambda: saved(picture(), "BMP"),
    "jpg_as.png": lambda: saved(picture(), "JPEG"),
    "photo.webp": lambda: saved(picture(), "WEBP"),
    "scan.tif": lambda: saved(picture(), "TIFF", compression="tiff_lzw"),
    "old.ppm": lambda: saved(picture(), "PPM"),
    "several.jpg": lambda: saved(picture(), "MPO", save_all=True, append_images=[picture()]),
    "one_pixel.png": lambda: saved(picture(size=(1, 1)), "PNG"),
    "strip.png": lambda: saved(picture(size=(900, 1)), "PNG"),
    "with space é.jpg": lambda: saved(picture(), "JPEG"),
    "no_ending": lambda: saved(picture(), "JPEG"),
    "photo.avif": lambda: saved(picture(), "AVIF"),
    "photo.jp2": lambda: saved(picture(), "JPEG2000"),
    "motion_photo.jpg": lambda: saved(picture(), "JPEG") + b"ftypmp42" + b"\xff\xda" * 9,
    "motion_progressive.jpg": lambda: saved(picture(), "JPEG", progressive=True) + b"\xff\xda",
    "several_cut.jpg": lambda: saved(picture(), "MPO", save_all=True, append_images=[picture()])[
        :-99
    ],
    "text_bomb.png": lambda: with_text_bomb(),  # never unpacked
    "profile.png": lambda: saved(picture(), "PNG", icc_profile=bytes(3_000_000)),
    "text.png": lambda: saved(picture(), "PNG", pnginfo=long_text()),
}


def long_text():
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    info.add_itxt("prompt", "x" * 2_000_000, zip=True)
    return info


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width, height, data=b""):
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@functools.cache
def compressed_zeros(number):
    return zlib.compress(bytes(number), 9)


def with_text_bomb():
    content = saved(picture(), "PNG")
    bomb = chunk(b"zTXt", b"Comment\0\0" + compressed_zeros(80_000_000))
    return content[:33] + bomb + content[33:]


def damaged(kind, **options):
    content = bytearray(saved(picture(size=(60, 50)), kind, **options))
    content[len(content) // 2 : len(content) // 2 + 40] = b"\x55" * 40
    return bytes(content)


def cut(kind, part, **options):
    content = saved(picture(size=(60, 50)), kind, **options)
    return content[: int(len(content) * part)]


def padded():
    content = saved(picture(size=(60, 50)), "JPEG")
    return content[: len(content) // 2] + b"\0" * (len(content) - len(content) // 2)


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("cat.jpg", saved(picture(), "JPEG"))
    return buffer.getvalue()


class Harmful:
    def __reduce__(self):
        return os.system, ("touch executed",)


BAD = {
    "empty.jpg": (lambda: b"", "empty file"),
    "text.jpg": (lambda: b"no image", "not an image of a known kind"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html>404 Not Found</html>", "not an image"),
    "vector.png": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "document.jpg": (lambda: b"%PDF-1.7\n1 0 obj", "not an image"),
    "postscript.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9", "not an image"),
    "icon.jpg": (lambda: saved(picture(size=(16, 16)), "ICO"), "not an image"),
    "archive.jpg": (archive, "not an image"),
    "pickle.jpg": (lambda: pickle.dumps(Harmful()), "not an image"),
    "random.jpg": (lambda: RNG.bytes(5000), "not an image"),
    "only_magic.jpg": (lambda: b"\xff\xd8\xff", "not an image"),
    "noise_after_magic.jpg": (lambda: b"\xff\xd8\xff\xe0" + RNG.bytes(3000), ""),
    "cut.jpg": (lambda: cut("JPEG", 0.6), "damaged or cut off"),
    "cut_late.jpg": (lambda: cut("JPEG", 0.98), "damaged or cut off"),
    "cut_progressive.jpg": (lambda: cut("JPEG", 0.6, progressive=True), "damaged or cut off"),
    "padded.jpg": (padded, "damaged or cut off: the end is missing"),
    "cut.png": (lambda: cut("PNG", 0.7), "damaged or cut off"),
    "no_end.png": (lambda: saved(picture(), "PNG")[:-12], "the end is missing"),
    "damaged.png": (lambda: damaged("PNG"), "damaged or cut off"),
    "cut.gif": (lambda: saved(picture().quantize(32), "GIF")[:-60], "damaged or cut off"),
    "cut.bmp": (lambda: cut("BMP", 0.7), "damaged or cut off"),
    "cut.webp": (lambda: cut("WEBP", 0.7), "damaged or cut off"),
    "cut.tif": (lambda: cut("TIFF", 0.7), "damaged or cut off"),
    "cut.ppm": (lambda: cut("PPM", 0.7), "damaged or cut off"),
    "bomb.png": (lambda: png_that_claims(60_000, 60_000), "decompression bomb"),
    "small_bomb.png": (
        lambda: png_that_claims(10_000, 10_000, bytes(10_000 * 1251)),
        "decompression bomb: 10000 x 10000 is more than",
    ),
    "no_size.png": (lambda: png_that_claims(0, 10), ""),
}


@pytest.mark.parametrize("name", GOOD)
def test_usable_images(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = decode(GOOD[name]())
    assert image.mode == "RGB"
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("name", BAD)
def test_unusable_images(name):
    content, reason = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadImage, match=reason) as error:
            decode(content())
    assert "\n" not in str(error.value)


def test_a_bomb_under_pillows_hard_limit_is_an_error_without_any_warning_filter():
    with (
        warnings.catch_warnings(record=True),
        pytest.raises(BadImage, match="decompression bomb"),
    ):
        decode(BAD["small_bomb.png"][0]())


def test_deep_grey_is_scaled_not_clipped():
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    image = decode(saved(Image.fromarray(values), "PNG"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_every_bad_file_among_a_thousand_good_ones(tmp_path):
    root = tmp_path / "photos"
    good = []
    for split, count in (("train", 350), ("test", 150)):
        for kind in ("cat", "dog"):
            for number, name in zip(range(count), list(GOOD) * 20, strict=False):
                stem, dot, ending = name.rpartition(".")
                path = f"{split}/{kind}/{stem}{number}{dot}{ending}"
                write(root / path, GOOD[name]())
                good.append(path)
    bad = {}
    for number, (name, (content, reason)) in enumerate(BAD.items()):
        path = f"{('train', 'test')[number % 2]}/{('cat', 'dog')[number // 2 % 2]}/{name}"
        write(root / path, content())
        bad[path] = reason
    write(tmp_path / "secret.jpg", GOOD["plain.jpg"]())
    (root / "train/cat/away.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "train/cat/gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(root / "test/dog/pipe.jpg")
    bad |= {
        "train/cat/away.jpg": "link that leaves the folder",
        "train/cat/gone.jpg": "link to something that is no file",
        "test/dog/pipe.jpg": "not a regular file",
    }
    write(root / "train/cat/.hidden.jpg", b"")
    write(root / "train/dog/Thumbs.db", b"\xd0\xcf\x11\xe0")
    write(root / "train/dog/notes.txt", b"dogs")

    data = prepare(folder_source(root, 0.25, 0), tmp_path / "cache", size=8)

    assert sorted((*data.train.files, *data.test.files)) == sorted(good)
    assert len(good) == 1000
    found = dict(data.audit.quarantined)
    assert found.keys() == bad.keys()
    assert all(reason in found[path] for path, reason in bad.items())
    assert data.audit.checked == 1000 + len(bad)
    assert data.audit.ignored == ("train/dog/notes.txt",)
    assert not list(tmp_path.rglob("executed"))
    report = "\n".join(data.audit.lines())
    assert f"{len(bad)} files cannot be used and are left out: " in report
    assert AuditReport.from_dict(data.audit.as_dict()) == data.audit


# --- duplicates -----------------------------------------------------------------------------------


def smooth(seed, size=(64, 48)):
    """A picture with large shapes, as photos have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def doubled(tmp_path):
    """Four photos of each class in train, two in test; then some of them again."""
    root = tmp_path / "photos"
    for label, kind in enumerate(("cat", "dog")):
        for number in range(4):
            write(root / f"train/{kind}/{number}.png", saved(smooth(10 * label + number), "PNG"))
        for number in range(2):
            write(root / f"test/{kind}/{number}.png", saved(smooth(50 + label + 9 * number), "PNG"))
    copies = {
        "train/cat/leak.png": "test/cat/0.png",
        "train/dog/leak.jpg": "test/cat/1.png",  # and in another class
        "train/cat/again.png": "train/cat/2.png",
    }
    for copy, original in copies.items():
        write(root / copy, (root / original).read_bytes())
    write(root / "train/dog/smaller.jpg", saved(smooth(59).resize((52, 39)), "JPEG", quality=80))
    return root


def test_training_images_that_are_in_test_too_are_removed(doubled, tmp_path):
    data = prepare(folder_source(doubled, 0.25, 0), tmp_path / "cache", size=64)
    assert data.audit.in_test_too == (
        ("train/cat/leak.png", "test/cat/0.png"),
        ("train/dog/leak.jpg", "test/cat/1.png"),
    )
    assert data.audit.removed
    assert len(data.train) == 10
    assert len(data.test) == 4
    assert not set(data.train.digests) & set(data.test.digests)
    assert data.audit.duplicates == (("train/cat/2.png", "train/cat/again.png"),)
    assert data.audit.contradictions == ()
    assert data.audit.checked == 16
    assert any("are in test too, left out of training" in line for line in data.audit.lines())


def test_they_can_be_kept(doubled, tmp_path):
    source = folder_source(doubled, 0.25, 0)
    data = prepare(source, tmp_path / "cache", size=64, keep_duplicates=True)
    assert len(data.train) == 12
    assert not data.audit.removed
    assert len(data.audit.in_test_too) == 2
    assert data.audit.contradictions == (("test/cat/1.png", "train/dog/leak.jpg"),)
    without = prepare(source, tmp_path / "cache", size=64)
    assert len(without.train) == 10


def test_near_duplicates_are_reported_only(doubled, tmp_path):
    data = prepare(folder_source(doubled, 0.25, 0), tmp_path / "cache", size=64)
    (pair,) = data.audit.near_duplicates
    assert {pair.first, pair.second} == {"train/dog/smaller.jpg", "test/cat/1.png"}
    assert pair.across
    assert pair.distance <= 4
    assert "train/dog/smaller.jpg" in data.train.files


def test_a_class_that_is_all_in_test_too(doubled, tmp_path):
    for path in (doubled / "train/dog").iterdir():
        path.unlink()
    write(doubled / "train/dog/0.png", (doubled / "test/dog/0.png").read_bytes())
    with pytest.raises(
        UserError,
        match="no usable image of class 'dog' is left in train; 2 training images are in test too",
    ):
        prepare(folder_source(doubled, 0.25, 0), tmp_path / "cache", size=16)


def test_the_same_photo_in_two_shards(doubled, tmp_path):
    train = prepare(folder_source(doubled, 0.25, 0), tmp_path / "cache", size=16).train
    first, second = (train.files.index(f"train/cat/{name}.png") for name in ("2", "again"))
    others = [i for i in range(len(train)) if i not in (first, second)]
    apart = [np.array([first, *others[:3]]), np.array([second, *others[3:]])]
    assert shared_between_shards(train, apart) == [
        ((0, "train/cat/2.png"), (1, "train/cat/again.png"))
    ]
    together = [np.array([first, second]), np.array(others)]
    assert shared_between_shards(train, together) == []


def test_near_duplicates_by_hand():
    looks = [0b0, 0b1111, 0b11111, (1 << 64) - 1, 0b0]
    images = [Seen("train", f"{i}", 0, f"{i}", look) for i, look in enumerate(looks)]
    images.append(Seen("test", "t", 0, "t", (1 << 64) - 2))
    images.append(Seen("train", "copy", 0, "3", (1 << 64) - 1))
    pairs, found = find_near_duplicates(images)
    assert [(p.first, p.second, p.distance, p.across) for p in pairs] == [
        ("3", "t", 1, True),
        ("t", "copy", 1, True),
        ("0", "4", 0, False),
        ("1", "2", 1, False),
        ("0", "1", 4, False),
        ("1", "4", 4, False),
    ]
    assert found == 6


def test_perceptual_hash_survives_scaling_and_compression():
    original, other = smooth(1), smooth(2)
    again = decode(saved(original.resize((40, 30)), "JPEG", quality=70))
    distance = (perceptual_hash(original) ^ perceptual_hash(again)).bit_count()
    assert distance <= 4
    assert (perceptual_hash(original) ^ perceptual_hash(other)).bit_count() > 12
