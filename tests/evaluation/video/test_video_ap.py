"""AP of tracks: a slow version rule by rule, cases computed by hand, bad input, the evaluator."""

import copy
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_tracks import draw_tracks, perfect_results
from reference_metrics import reference_track_metrics
from score_command import score, score_error
from synthetic_coco import compressed_rle as rle
from synthetic_coco import rectangle
from synthetic_evaluation import Replay, metrics_of

from mask2former.evaluation.evaluator import inference_on_dataset
from mask2former.evaluation.video.ap import YTVISEvaluator, track_average_precision
from mask2former.structures import RunLengthMasks

SIZE = (10, 20)
OVERALL = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_version_of_the_rules(seed):
    truth, results = draw_tracks(seed)
    expected = reference_track_metrics(truth, results)
    before = copy.deepcopy((truth, results))
    scores = track_average_precision(truth, results)
    assert scores == pytest.approx(expected, nan_ok=True, abs=1e-9) and [*scores][:8] == [*OVERALL]
    assert 1 < scores["AP"] < 99 and scores["AR1"] < scores["AR10"]
    assert (truth, results) == before


def test_equals_a_slow_version_with_more_results_than_count():
    truth, results = draw_tracks(3, videos=2, size=(12, 16), most=120)
    assert max(Counter((result["video_id"], result["category_id"]) for result in results).values()) > 100
    expected = reference_track_metrics(truth, results)
    assert track_average_precision(truth, results) == pytest.approx(expected, nan_ok=True, abs=1e-9)


def one_video():
    """Return a track of 50 pixels in two of three frames, and a result that finds 50 and 30 of them."""
    box = rectangle(SIZE, 0, 0, 5, 10)
    part = rectangle(SIZE, 0, 0, 3, 10)
    names = [f"a/{frame}.jpg" for frame in range(3)]
    truth = {
        "videos": [{"id": 4, "height": SIZE[0], "width": SIZE[1], "length": 3, "file_names": names}],
        "categories": [{"id": 1, "name": "box"}, {"id": 9, "name": "absent"}],
        "annotations": [
            {
                "id": 1,
                "video_id": 4,
                "category_id": 1,
                "iscrowd": 0,
                "segmentations": [rle(box), None, rle(box)],
                "areas": [50, None, 50],
                "bboxes": [[0, 0, 10, 5], None, [0, 0, 10, 5]],
            }
        ],
    }
    results = [{"video_id": 4, "category_id": 1, "score": 0.5, "segmentations": [rle(box), None, rle(part)]}]
    return truth, results


def test_a_case_computed_by_hand():
    # 80 of 100 pixels: IoU 0.8 passes 0.50 to 0.80, seven of ten thresholds
    truth, results = one_video()
    scores = track_average_precision(truth, results)
    expected = {"AP": 70, "AP50": 100, "AP75": 100, "APs": 70, "AR1": 70, "AR10": 70, "AP-box": 70}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert all(np.isnan(scores[name]) for name in ("APm", "APl", "AP-absent"))


def test_a_mask_in_a_hidden_frame_adds_to_the_union():
    # 80 of 100 + 30 pixels: IoU 0.62 passes three of ten thresholds
    truth, results = one_video()
    results[0]["segmentations"][1] = rle(rectangle(SIZE, 0, 0, 3, 10))
    assert track_average_precision(truth, results)["AP"] == pytest.approx(30)


def test_sizes_go_by_the_mean_area_of_the_frames_with_the_object():
    truth, results = one_video()
    truth["annotations"][0]["areas"] = [128**2 - 10, None, 128**2 + 12]  # the mean over three frames is small
    scores = track_average_precision(truth, results)
    assert np.isnan(scores["APs"]) and scores["APm"] == pytest.approx(70)


def test_a_result_inside_a_crowd_is_excused():
    truth, results = one_video()
    crowd = copy.deepcopy(truth["annotations"][0])
    truth["annotations"].append(
        {**crowd, "id": 2, "iscrowd": 1, "segmentations": [None, rle(np.ones(SIZE)), None]}
    )
    inside = {**results[0], "score": 0.9, "segmentations": [None, rle(rectangle(SIZE, 2, 2, 4, 5)), None]}
    assert track_average_precision(truth, [inside, *results])["AP"] == pytest.approx(70)
    truth["annotations"].pop()
    assert track_average_precision(truth, [inside, *results])["AP"] == pytest.approx(35, abs=0.5)


def test_a_track_without_masks_counts_as_missed_with_a_warning(caplog):
    truth, results = one_video()
    empty = {**truth["annotations"][0], "id": 2, "segmentations": [None] * 3, "areas": [None] * 3}
    truth["annotations"].append(empty)
    assert track_average_precision(truth, results)["AR1"] == pytest.approx(35)
    assert "1 tracks have no mask in any frame; they count as missed" in caplog.text


@pytest.mark.parametrize("seed", range(2))
def test_perfect_and_empty_results_in_files(tmp_path, seed):
    truth, _ = draw_tracks(seed)
    truth["annotations"] = [track for track in truth["annotations"] if any(track["segmentations"])]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for results, expected in ((perfect_results(truth), 100), ([], 0)):
        (tmp_path / "results.json").write_text(json.dumps(results))
        scores = score("video", "--gt", tmp_path / "truth.json", "--results", tmp_path / "results.json")
        assert [scores[name] for name in ("AP", "AP50", "AP75", "AR10")] == pytest.approx([expected] * 4)
        assert np.isnan(scores["AP-absent"])


@pytest.mark.parametrize("empty", [["annotations"], ["videos", "annotations"], ["categories", "annotations"]])
def test_an_empty_ground_truth_gives_nan(empty):
    truth, _ = one_video()
    scores = track_average_precision({**truth, **{key: [] for key in empty}}, [])
    assert all(np.isnan(scores[name]) for name in OVERALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 5}, "results: item 0: video_id 5 is not in the ground truth"),
        ({"category_id": 2}, "results: item 0: category_id 2 is not in the ground truth"),
        ({"score": "high"}, "results: item 0: 'score' is 'high', expected a number"),
        ({"score": float("nan")}, "results: item 0: 'score' is nan, expected a number"),
        ({"segmentations": None}, "item 0, video 4: 'segmentations' has None, expected one for each of the"),
        ({"segmentations": [None]}, "video 4: 'segmentations' has 1 entries, expected one for each of the"),
    ],
)
def test_invalid_results_are_errors(change, message):
    truth, results = one_video()
    with pytest.raises(ValueError, match=message):
        track_average_precision(truth, [{**results[0], **change}])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[0, 0, 1, 1, 1, 0]], r"frame 1: \[\[0, 0, .* is not null or a compressed RLE"),
        ({"size": [10, 20], "counts": [200]}, "frame 1: .* is not null or a compressed RLE"),
        ({"size": [10, 20], "counts": "13"}, "item 0, video 4, frame 1: .* 4 of 200 pixels"),
        ({"size": [10, 20], "counts": "abc"}, "frame 1: the counts are no run"),
        (rle(np.ones((20, 10))), r"frame 1: .* \(20, 10\) for .*, not \[width, height"),
    ],
)
def test_a_broken_mask_of_a_result_is_an_error(mask, message):
    truth, results = one_video()
    results[0]["segmentations"][1] = mask
    with pytest.raises(ValueError, match=message):
        track_average_precision(truth, results)


@pytest.mark.parametrize("key", ["video_id", "category_id", "score", "segmentations"])
def test_a_missing_key_of_a_result_is_named(key):
    truth, results = one_video()
    del results[0][key]
    with pytest.raises(ValueError, match=f"results: item 0: no key '{key}'"):
        track_average_precision(truth, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": {}}, r"ground truth: 'videos' is \{\}, expected a list"),
        ({"annotations": None}, "ground truth: 'annotations' is None, expected a list"),
        ({"video_id": 7}, r"annotations\[0\]: video_id 7 is not in the ground truth"),
        ({"iscrowd": "x"}, r"annotations\[0\] \(id 1, video 4\): 'iscrowd' is 'x', expected 0 or 1"),
        ({"areas": [50, None]}, r"\(id 1, video 4\): 'areas' has 2 entries, expected one for each"),
        ({"areas": [50, None, "50"]}, r"\(id 1, video 4\): 'area' is '50', expected a number of pixels"),
        ({"segmentations": [None, 3, None]}, r"video 4\): frame 1: 'segmentation' is 3, expected a list"),
        (
            {"segmentations": [None, None, {"size": [10, 20], "counts": [5, 3]}]},
            r"annotations\[0\] \(id 1, video 4\): frame 2: .* 8 of 200 pixels",
        ),
    ],
)
def test_invalid_ground_truth_is_an_error(change, message):
    truth, results = one_video()
    target = truth if change.keys() <= truth.keys() else truth["annotations"][0]
    target.update(change)
    with pytest.raises(ValueError, match=message):
        track_average_precision(truth, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_names": None}, "ground truth: video 4: no key 'file_names'"),
        ({"width": None}, "ground truth: video 4: no key 'width'"),
        ({"height": "10"}, "ground truth: video 4: 'height' is '10', expected a whole number"),
        ({"length": 2}, "ground truth: video 4: 'length' is 2, but 'file_names' has 3 entries"),
        ({"file_names": []}, r"video 4: 'file_names' is \[\], expected a list of texts"),
        ({"file_names": ["a", "b", 3]}, "video 4: 'file_names' is .* 3\\], expected a list of texts"),
    ],
)
def test_an_invalid_video_is_an_error(change, message):
    truth, results = one_video()
    video = {**truth["videos"][0], **change}
    truth["videos"] = [{key: value for key, value in video.items() if value is not None}]
    with pytest.raises(ValueError, match=message):
        track_average_precision(truth, results)


def test_command_reports_bad_input_in_one_line(tmp_path):
    truth, results = one_video()
    del truth["annotations"][0]["areas"]
    for name, content in {"truth.json": truth, "results.json": results}.items():
        (tmp_path / name).write_text(json.dumps(content))
    for gt, found, message in [
        ("absent.json", "results.json", "absent.json: no such file"),
        ("truth.json", "truth.json", "truth.json: holds a dict at the top, expected a list"),
        ("truth.json", "results.json", "truth.json: annotations[0] (id 1, video 4): no key 'areas'"),
    ]:
        assert message in score_error("video", "--gt", tmp_path / gt, "--results", tmp_path / found)


class Files:
    """A ground truth on disk and the outputs of a model for it."""

    def __init__(self, folder):
        self.truth, self.results = one_video()
        self.json = folder / "truth.json"
        self.json.write_text(json.dumps(self.truth))
        table = {1: 0, 9: 1}
        self.metadata = SimpleNamespace(
            name="drawn", json_file=str(self.json), thing_dataset_id_to_contiguous_id=table
        )

    def clip(self, form):
        """Return the input and the output for the video: the result in `results`."""
        masks = torch.zeros(3, *SIZE, dtype=torch.bool)
        masks[0, :5, :10] = masks[2, :3, :10] = True
        output = {"pred_scores": [0.5], "pred_labels": [0], "pred_masks": [form(masks)]}
        return {"video_id": 4, "length": 3, "output": output}


def as_runs(masks):
    """Return the masks as runs of pixels: ten columns of five, none, ten columns of three."""
    starts = torch.arange(10) * SIZE[0]
    runs = [torch.stack([starts, starts + height], dim=1) for height in (5, 3)]
    found = RunLengthMasks(SIZE, [runs[0], runs[0][:0], runs[1]])
    assert torch.equal(found.dense(), masks)
    return found


@pytest.mark.parametrize("form", [torch.clone, as_runs], ids=["dense", "runs"])
def test_evaluator_writes_results_that_score_the_same(tmp_path, form):
    files = Files(tmp_path)
    evaluator = YTVISEvaluator(
        metadata=files.metadata, output_dir=tmp_path / "inference", save_predictions=True
    )
    metrics = metrics_of(evaluator, [files.clip(form)])
    assert metrics["AP"] == pytest.approx(70)
    file = tmp_path / "inference/results.json"
    assert json.loads(file.read_text()) == files.results
    assert (tmp_path / "inference/submission/results.json").read_text() == file.read_text()
    assert score("video", "--gt", files.json, "--results", file) == pytest.approx(metrics, nan_ok=True)


@pytest.mark.parametrize("annotations", ["absent", None])
def test_results_without_annotations_are_saved_not_scored(tmp_path, annotations, caplog):
    files = Files(tmp_path)
    del files.truth["annotations"]
    if annotations != "absent":
        files.truth["annotations"] = annotations
    files.json.write_text(json.dumps(files.truth))
    evaluator = YTVISEvaluator(metadata=files.metadata, output_dir=tmp_path / "inference")
    with caplog.at_level("INFO"):
        assert not inference_on_dataset(Replay(), [[files.clip(torch.clone)]], evaluator)
    assert json.loads((tmp_path / "inference/results.json").read_text()) == files.results
    assert "has no annotations: the results are saved, not scored" in caplog.text


def test_evaluator_without_results_gives_zero(tmp_path):
    files = Files(tmp_path)
    empty = {"video_id": 4, "output": {"pred_scores": [], "pred_labels": [], "pred_masks": []}}
    assert metrics_of(YTVISEvaluator(metadata=files.metadata), [empty])["AP"] == 0


def test_a_broken_ground_truth_is_an_error_before_the_model_runs(tmp_path):
    files = Files(tmp_path)
    files.truth["annotations"][0]["segmentations"].pop()
    files.json.write_text(json.dumps(files.truth))
    with pytest.raises(ValueError, match=r"truth\.json: annotations\[0\] .* has 2 entries"):
        YTVISEvaluator(metadata=files.metadata)
