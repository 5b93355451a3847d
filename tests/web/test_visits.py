"""What visitors get as an answer: views, or errors of one line."""

import base64
import copy
import io

import numpy as np
import pytest
from PIL import Image

from mask2former.config import with_values
from mask2former.web.visits import GONE, Visits


@pytest.fixture
def visits(predictor):
    return Visits(predictor)


@pytest.fixture
def opened(visits, tmp_path):
    """Return a function that opens a file with some content as visitor "a"."""

    def open_image(content, name="beach.png"):
        path = tmp_path / "upload"
        path.write_bytes(content)
        steps = []
        answer = visits.open_image("a", path, name, visits.predictor.thresholds, lambda *at: steps.append(at))
        return answer, [share for share, _ in steps]

    return open_image


def png(height=40, width=60):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_image_is_opened_step_by_step(visits, opened):
    answer, shares = opened(png())
    assert answer["session"] == "a" and len(answer["views"]) == 4
    assert shares == sorted(shares) and len(shares) > 1
    assert visits.sessions.get("a").name == "beach.png"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xd8 no image", "is not an image that Pillow can read"),
        (png()[:900], "cannot be read ("),
        (b"", "is not an image that Pillow can read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
    ],
    ids=["other", "truncated", "empty", "PostScript"],
)
def test_a_broken_image_is_an_error_of_one_line_with_the_name_of_the_file(visits, opened, content, reason):
    opened(png())
    answer, _ = opened(content, "broken.png")
    assert list(answer) == ["error"]
    assert answer["error"].startswith("broken.png: ") and reason in answer["error"]
    assert "\n" not in answer["error"] and "upload" not in answer["error"]
    assert visits.sessions.get("a").name == "beach.png"  # what was shown before stays


def test_images_above_the_limit_of_pixels_are_refused(visits, opened):
    visits.predictor = copy.copy(visits.predictor)
    visits.predictor.cfg = with_values(visits.predictor.cfg, {"INPUT.MAX_MEGAPIXELS": 0.002}, "the test")
    answer, _ = opened(png(), "large.png")
    assert "large.png: is of 60 x 40 pixels, 0.0024 megapixels; the limit is 0.002" in answer["error"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_lack_of_memory_is_an_error_of_one_line(visits, opened, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(visits.predictor.model, "network", fail)
    assert opened(png())[0] == {"error": "beach.png: is too large for the memory of this machine"}
    error.args = ("a bug",)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="a bug"):
            opened(png())


def test_visitors_see_their_own_image(visits, opened):
    opened(png())
    first = visits.sessions.get("a")
    visits.sessions.put("b", first)
    opened(png(20, 20), "other.png")
    assert visits.redraw("b", visits.predictor.thresholds)["message"].startswith("beach.png")
    assert visits.hide("a", [0])["message"].startswith("other.png")
    assert visits.sessions.get("b").hidden == frozenset() and visits.sessions.get("a").hidden == {0}


def test_a_file_is_sent_with_its_name(visits, opened):
    opened(png())
    answer = visits.file({"session": "a", "task": "semantic", "kind": "overlay"})
    assert answer["name"] == "beach_semantic.png"
    assert Image.open(io.BytesIO(base64.b64decode(answer["content"]))).size == (8 * 60, 8 * 40)


def test_an_image_that_was_dropped_has_to_be_opened_again(visits):
    assert visits.redraw("gone", visits.predictor.thresholds) == {"error": GONE}
    assert visits.hide("gone", []) == {"error": GONE}
    assert visits.file({"session": "gone", "task": "semantic", "kind": "overlay"}) == {"error": GONE}
    assert visits.file({}) == {"error": GONE}
