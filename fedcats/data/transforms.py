"""The paper's transforms, the part that runs per batch: flip, scale, normalise.

Resizing is done once, when the images enter the cache (`fedcats.data.preparing`). What comes out
of both together equals torchvision's pipeline bit by bit.
"""

import torch

SIZE = 224
"""Height and width of an image, in pixels."""

MEAN = (0.485, 0.456, 0.406)
"""Mean of the ImageNet photos, red, green, blue, of values in 0..1."""

STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Scale to 0..1 and normalise with the mean and deviation of ImageNet.

    Equals ``Normalize(MEAN, STD)(ToTensor()(image))`` of torchvision exactly: the same operations
    in the same order.

    Parameters
    ----------
    pixels
        (b, 3, H, W), uint8, on any device.

    Returns
    -------
    torch.Tensor
        (b, 3, H, W), float32, on the same device.
    """
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def draw_flips(n: int, generator: torch.Generator, p: float = 0.5) -> torch.Tensor:
    """Which of ``n`` images are to be mirrored: (n,) bool, each with probability ``p``.

    Drawn on the CPU, one draw for each image, so the same whatever device the pixels are on.
    """
    return torch.rand(n, generator=generator) < p


def flip_(pixels: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Mirror images left to right, in place.

    Parameters
    ----------
    pixels
        (b, 3, H, W), any type, on any device.
    flipped
        (b,), bool, on the CPU: which of them; see `draw_flips`.

    Returns
    -------
    torch.Tensor
        `pixels` itself.
    """
    where = flipped.nonzero().flatten().to(pixels.device)
    pixels[where] = pixels[where].flip(-1)
    return pixels
