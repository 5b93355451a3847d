"""Downloads of the page: read back by this project's own readers, and compared with what Result saves."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import NAMES

from mask2former.tools.score import main
from mask2former.utils.label_maps import read_segment_ids
from mask2former.web import session as sessions_module
from mask2former.web.downloads import KINDS, download
from mask2former.web.session import Session


@pytest.fixture
def session(predictor):
    image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    return Session(predictor, image, "../my beach.png", predictor.thresholds)


@pytest.mark.parametrize("task", KINDS)
def test_overlays_are_drawn_by_the_result_at_full_size(session, monkeypatch, task):
    monkeypatch.setattr(sessions_module, "SHOWN_SIDE", 70)
    session = Session(session.predictor, session.image, session.name, session.thresholds)
    name, overlay = download(session, task, "overlay")
    assert name == f"my beach_{task}.png"
    expected = session.predictor(session.image).draw(task, scale=3)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(overlay))), expected)


def test_instances_are_a_coco_file_of_what_is_shown(session):
    name, content = download(session, "instance", "coco")
    assert name == "my beach_instances.json"
    assert json.loads(content) == session.shown.to_coco(session.name, "instance")
    session.hidden = frozenset([0])
    categories = [
        item["category_id"]
        for item in json.loads(download(session, "instance", "coco").content)["annotations"]
    ]
    assert 1 not in categories


def test_segments_are_in_coco_s_panoptic_format(session, tmp_path, capsys):
    name, content = download(session, "panoptic", "ids")
    assert name == "my beach_panoptic.zip"
    zipfile.ZipFile(io.BytesIO(content)).extractall(tmp_path)
    truth = json.loads((tmp_path / "my beach.json").read_text())
    assert [row["name"] for row in truth["categories"]] == NAMES
    assert [row["isthing"] for row in truth["categories"]] == [1, 1, 0, 0]
    ids, segments = session.shown.panoptic
    np.testing.assert_array_equal(read_segment_ids(tmp_path / "my beach.png"), ids)
    (annotation,) = truth["annotations"]
    for info, segment in zip(annotation["segments_info"], segments, strict=True):
        rows, columns = np.nonzero(ids == segment["id"])
        left, top, width, height = info["bbox"]
        assert (info["id"], info["category_id"] - 1) == (segment["id"], segment["category_id"])
        assert (info["area"], info["iscrowd"]) == (len(rows), 0)
        assert (left, left + width) == (columns.min(), columns.max() + 1)
        assert (top, top + height) == (rows.min(), rows.max() + 1)
    flags = [f"--{side}-json={tmp_path}/my beach.json" for side in ("gt", "pred")]
    flags += [f"--{side}-dir={tmp_path}" for side in ("gt", "pred")]
    assert main(["panoptic", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["PQ"] == 100


@pytest.mark.parametrize(("task", "kind"), [("semantic", "coco"), ("original", "overlay"), ("", "")])
def test_there_are_no_other_files(session, task, kind):
    with pytest.raises(ValueError, match="there is no file"):
        download(session, task, kind)
