"""Pixel equality with torchvision's own pipeline, on files of every colour mode."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms

from fedcats.data import MEAN, STD, draw_flips, flip_, folder_source, normalise, prepare


def noise(mode, size, seed=0):
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0]) if bands == 1 else (size[1], size[0], bands)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size)
    texture = rng.integers(0, 256, shape, dtype=np.uint8)
    base = np.asarray(coarse.convert(mode) if mode in ("RGB", "L", "CMYK") else coarse.convert("L"))
    if base.ndim < texture.ndim:
        base = base[..., None]
    return Image.fromarray(((base.astype(int) + texture) // 2).astype(np.uint8), mode)


def rotated_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "rgb.jpg": (lambda: noise("RGB", (320, 200)), {"quality": 88}),
    "small.jpg": (lambda: noise("RGB", (40, 61)), {}),
    "exact.png": (lambda: noise("RGB", (224, 224)), {}),
    "grey.jpg": (lambda: noise("L", (260, 300)), {}),
    "alpha.png": (lambda: noise("RGBA", (250, 231)), {}),
    "grey_alpha.png": (lambda: noise("LA", (150, 231)), {}),
    "cmyk.jpg": (lambda: noise("CMYK", (300, 225)), {}),
    "turned.jpg": (lambda: noise("RGB", (320, 200), 5), {"exif": rotated_exif(6)}),
    "mirrored.jpg": (lambda: noise("RGB", (320, 200), 6), {"exif": rotated_exif(2)}),
    "palette.gif": (lambda: noise("RGB", (120, 200)).quantize(64), {}),
    "bits.png": (lambda: noise("L", (120, 200)).convert("1"), {}),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (root / split / kind).mkdir(parents=True)
            for name, (image, options) in FILES.items():
                image().save(root / split / kind / name, **options)
    source = folder_source(root, 0.5, 0)
    return root, prepare(source, tmp_path_factory.mktemp("cache"), keep_duplicates=True)


def torchvision_pixels(path, p):
    """The paper's transforms, by torchvision; the photo turned upright and RGB before."""
    pipeline = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.CenterCrop(224),
            transforms.RandomHorizontalFlip(p=p),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    with Image.open(path) as image:
        return pipeline(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_equal_to_torchvision(dataset, name, p):
    root, data = dataset
    index = data.train.files.index(f"train/dog/{name}")
    flipped = draw_flips(1, torch.Generator().manual_seed(0), p)
    pixels = flip_(data.train.pixels([index]), flipped)
    expected = torchvision_pixels(root / "train" / "dog" / name, p)
    ours = normalise(pixels)[0]
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected)


def test_exif_turn_really_happens(dataset):
    root, data = dataset
    index = data.train.files.index("train/cat/turned.jpg")
    with Image.open(root / "train/cat/turned.jpg") as image:
        turned = image.transpose(Image.Transpose.ROTATE_270)  # orientation 6
        expected = np.asarray(turned.resize((224, 224), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(data.train.pixels([index])[0].permute(1, 2, 0), expected)


def test_flip_draws_one_decision_per_image():
    pixels = torch.arange(1000 * 3 * 2 * 2, dtype=torch.int64).view(1000, 3, 2, 2)
    flipped = flip_(pixels.clone(), draw_flips(1000, torch.Generator().manual_seed(7)))
    was_flipped = (flipped == pixels.flip(-1)).all(dim=(1, 2, 3))
    untouched = (flipped == pixels).all(dim=(1, 2, 3))
    assert bool((was_flipped ^ untouched).all())
    decisions = torch.rand(1000, generator=torch.Generator().manual_seed(7)) < 0.5
    assert torch.equal(was_flipped, decisions)
    assert 400 < int(was_flipped.sum()) < 600


def test_flip_is_in_place_and_keeps_the_type():
    pixels = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    result = flip_(pixels, torch.tensor([True]))
    assert result is pixels
    assert pixels.tolist() == [[[[2, 1], [4, 3]]]]
    assert pixels.dtype == torch.uint8


def test_normalise_by_hand():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    red, green, blue = normalise(pixels).flatten().tolist()
    assert red == pytest.approx((0 - 0.485) / 0.229)
    assert green == pytest.approx((1 - 0.456) / 0.224)
    assert blue == pytest.approx((0.2 - 0.406) / 0.225)
