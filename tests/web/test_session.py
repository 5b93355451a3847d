"""Sessions of the page: other thresholds and hidden classes without another run of the network."""

import numpy as np

from mask2former.config import with_values
from mask2former.predictor import Predictor
from mask2former.result import Thresholds
from mask2former.web import session as sessions_module
from mask2former.web.session import Session, Sessions, without_classes

CIRCLE, GRASS = 0, 2  # the classes that the tiny model is sure of


def random_image(height=90, width=140, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def predicted(stored, image, thresholds):
    """The result of another predictor, which has these thresholds from the beginning."""
    test = "MODEL.MASK_FORMER.TEST"
    values = {
        f"{test}.OBJECT_MASK_THRESHOLD": thresholds.object_mask,
        f"{test}.OVERLAP_THRESHOLD": thresholds.overlap,
    }
    cfg = with_values(stored, values, "the test")
    return Predictor(cfg, score_threshold=thresholds.score, duplicate_iou=thresholds.duplicate_iou)(image)


def test_other_thresholds_give_the_result_of_a_predictor_with_them_and_the_network_runs_once(
    predictor, monkeypatch
):
    runs = []
    network = predictor.model.network
    monkeypatch.setattr(predictor.model, "network", lambda *args: runs.append(args) or network(*args))
    image = random_image()
    session = Session(predictor, image, "a.png", predictor.thresholds)
    assert session.shown == predictor(image)
    runs.clear()
    strict = Thresholds(score=0.6, duplicate_iou=0.3, object_mask=0.97, overlap=0.3)
    for thresholds in (strict, strict._replace(score=0.0), predictor.thresholds):
        session.apply(thresholds)
        assert session.shown == session.full_result() == predicted(predictor.cfg, image, thresholds)
    assert not runs
    session.apply(strict)
    assert session.shown != predictor(image)


def test_thresholds_of_1_leave_nothing_and_say_why(predictor):
    session = Session(predictor, random_image(), "a.png", Thresholds(1.0, 0.5, 1.0, 0.5))
    assert "score of 1 or more" in session.shown.why_empty("instance")
    assert "probability above 1" in session.shown.why_empty("panoptic")


def test_large_images_are_shown_shrunk_and_saved_at_their_own_size(predictor, monkeypatch):
    monkeypatch.setattr(sessions_module, "SHOWN_SIDE", 70)
    image = random_image()
    session = Session(predictor, image, "a.png", predictor.thresholds)
    assert session.shown.image.shape == (45, 70, 3)
    assert session.shown.semantic.shape == session.shown.panoptic.ids.shape == (45, 70)
    assert session.full_result() == predictor(image)
    session.apply(predictor.thresholds._replace(score=1.0))
    assert session.full_result().count("instance") == 0


def test_hidden_classes_are_in_no_result(predictor):
    result = predictor(random_image())
    classes = [segment["category_id"] for segment in result.panoptic.segments]
    assert {CIRCLE, GRASS} <= set(classes)
    shown = without_classes(result, {CIRCLE})
    remaining = [segment["category_id"] for segment in shown.panoptic.segments]
    assert remaining == [k for k in classes if k != CIRCLE]
    circles = [s["id"] for s in result.panoptic.segments if s["category_id"] == CIRCLE]
    np.testing.assert_array_equal(
        shown.panoptic.ids, np.where(np.isin(result.panoptic.ids, circles), 0, result.panoptic.ids)
    )
    assert CIRCLE in result.instances.pred_classes and CIRCLE not in shown.instances.pred_classes
    np.testing.assert_array_equal(shown.semantic == GRASS, result.semantic == GRASS)
    assert not (shown.semantic == CIRCLE).any()
    hidden = without_classes(result, range(4))
    for task in hidden.tasks:
        np.testing.assert_array_equal(hidden.draw(task), result.image)
    assert without_classes(result, ()) is result


def test_the_oldest_sessions_are_dropped(predictor, monkeypatch):
    monkeypatch.setattr(sessions_module, "MOST_SESSIONS", 2)
    sessions = Sessions()
    session = Session(predictor, random_image(20, 30), "a.png", predictor.thresholds)
    for key in ("a", "b", "a", "c"):
        sessions.put(key, session)
    assert [key for key in "abc" if sessions.get(key)] == ["a", "c"]
    monkeypatch.setattr(sessions_module, "MOST_PIXELS", 700)
    sessions.put("d", session)
    assert [key for key in "abcd" if sessions.get(key)] == ["d"]
    sessions.drop("d")
    sessions.drop("d")
    assert len(sessions) == 0 and sessions.get(None) is None
