"""Many images on one: to look at a data set, or at what a client has."""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from fedcats.data.dataset import Images


def contact_sheet(
    images: Images, indices: ArrayLike, columns: int = 10, side: int = 112
) -> Image.Image:
    """Lay out images in rows, with a white gap between them.

    Parameters
    ----------
    images
        Where from.
    indices
        Positions in `images`, in the order in which they are laid out.
    columns
        Images in a row.
    side
        Height and width of each, in pixels.

    Returns
    -------
    PIL.Image.Image
        RGB; one image high for every `columns` indices, the last row filled up with white.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    gap = max(1, side // 28)
    step = side + gap
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * step - gap, max(rows * step - gap, 1)), "white")
    for place, index in enumerate(chosen):
        pixels = images.pixels([index])[0].permute(1, 2, 0).numpy()
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (place % columns * step, place // columns * step))
    return sheet
