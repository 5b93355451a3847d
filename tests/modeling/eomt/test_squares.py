"""Images that are no squares: padded with black, or predicted in windows, against slow versions."""

import pytest
import torch
from small_eomts import CLASSES, small_eomt
from small_vits import draw
from torch.nn import functional as F

from mask2former.modeling.eomt.squares import square_windows


def random_image(height, width):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0))


def test_pad_makes_black_squares():
    model = draw(small_eomt(squares="pad"))
    image = random_image(40, 72)
    padded = torch.zeros(3, 80, 80, dtype=image.dtype)
    padded[:, :40, :72] = image
    (prediction,) = model.predict_images([{"image": image}])
    (wanted,) = model.predict_images([{"image": padded}])
    torch.testing.assert_close(prediction.mask_logits, wanted.mask_logits)
    assert prediction.sizes.padded == (80, 80) and prediction.sizes.image == (40, 72)


@pytest.mark.parametrize(
    ("size", "starts"),
    [((4, 4), [0]), ((4, 8), [0, 4]), ((4, 9), [0, 2, 5]), ((9, 4), [0, 2, 5]), ((5, 4), [0, 1])],
)
def test_windows_are_evenly_spaced_along_the_longer_side(size, starts):
    windows = list(square_windows(*size))
    along = [rows if size[0] > size[1] else columns for rows, columns in windows]
    assert [window.start for window in along] == starts
    assert all(window.stop - window.start == 4 for window in along)


def test_windows_average_scores():
    model = draw(small_eomt(squares="windows"))
    image = random_image(112, 48)
    (result,) = model.predict([{"image": image, "height": 70, "width": 30}])
    scores, counts = torch.zeros(CLASSES, 112, 48), torch.zeros(112, 48)
    pixels = (image - model.pixel_mean) / model.pixel_std
    for top in (0, 32, 64):
        predictions = model.network(pixels[None, :, top : top + 48])
        masks = F.interpolate(predictions.mask_logits(), (48, 48), mode="bilinear").sigmoid()
        classes = predictions.layers[-1].class_logits.softmax(-1)[..., :-1]
        scores[:, top : top + 48] += torch.einsum("bqhw,bqc->bchw", masks, classes)[0]
        counts[top : top + 48] += 1
    wanted = F.interpolate((scores / counts)[None], (70, 30), mode="bilinear")[0]
    torch.testing.assert_close(result["sem_seg"], wanted, rtol=1e-4, atol=1e-5)
    (compact,) = model.predict([{"image": image}], compact=True)
    assert torch.equal(compact["label_map"], (scores / counts).argmax(0).int())
