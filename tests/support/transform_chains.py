"""Hypothesis strategy for chains of transforms that fit one another."""

from hypothesis import strategies as st

from mask2former.data.augmentation import Crop, Flip, Pad, Resize

SIDES = st.integers(1, 40)


@st.composite
def transform_chains(draw, kinds=(Flip, Resize, Crop, Pad)):
    """Draw an image's size (H, W), and up to five transforms of some kinds."""
    size = first = (draw(SIDES), draw(SIDES))
    steps = []
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=5)):
        if kind is Flip:
            steps.append(Flip(draw(st.sampled_from([None, 0, 1]))))
        elif kind is Resize:
            size = (draw(SIDES), draw(SIDES))
            steps.append(Resize(*size))
        elif kind is Crop:
            top, left = (draw(st.integers(0, side - 1)) for side in size)
            size = (draw(st.integers(1, size[0] - top)), draw(st.integers(1, size[1] - left)))
            steps.append(Crop(top, left, *size))
        else:
            bottom, right = draw(st.integers(0, 9)), draw(st.integers(0, 9))
            size = (size[0] + bottom, size[1] + right)
            steps.append(Pad(bottom, right))
    return first, steps
