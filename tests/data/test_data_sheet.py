"""The contact sheet."""

import numpy as np

from fedcats.data import contact_sheet, prepare, synthetic_source


def test_layout(tmp_path):
    train = prepare(synthetic_source(3, 1, 0), tmp_path, size=28).train
    sheet = contact_sheet(train, [5, 0, 2, 3], columns=3, side=28)
    assert sheet.size == (3 * 28 + 2, 2 * 28 + 1)
    pixels = np.asarray(sheet)
    for index, left, top in ((5, 0, 0), (0, 29, 0), (2, 58, 0), (3, 0, 29)):
        expected = train.pixels([index])[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels[top : top + 28, left : left + 28], expected)
    assert (pixels[29:, 29:] == 255).all()
    assert (pixels[:, 28] == 255).all()


def test_nothing_to_show(tmp_path):
    train = prepare(synthetic_source(1, 1, 0), tmp_path, size=28).train
    assert contact_sheet(train, [], columns=2, side=28).size == (57, 1)
