"""`--tile` of the commands `predict` and `evaluate`."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import save_tiny_checkpoint
from tiny_runs import CONFIG, restored_catalogs, tiny_options, tiny_shapes

from mask2former import Predictor
from mask2former.tools import evaluate, predict, train

__all__ = ["restored_catalogs", "tiny_shapes"]


def test_predict_draws_the_merged_result(tmp_path, capsys):
    checkpoint = save_tiny_checkpoint(tmp_path / "model.pth")
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    flags = ["--input", str(tmp_path / "image.png"), "--output", str(tmp_path / "drawn.png")]
    opts = ["--opts", "MODEL.WEIGHTS", str(checkpoint)]
    assert predict.main([*flags, "--tile", "64", "--tile-overlap", "0.5", *opts]) == 0
    result = Predictor(checkpoint, tile=64, tile_overlap=0.5)(image)
    assert f"{result.count('panoptic')} segments" in capsys.readouterr().out
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert np.array_equal(drawn, result.draw("panoptic", scale=len(drawn) // 100))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tile", "16"], "TEST.TILE.SIZE (tile) is 16 pixels; it must be at least 32"),
        (["--tile", "64", "--tile-overlap", "1"], "TEST.TILE.OVERLAP is 1"),
    ],
)
def test_wrong_values_are_errors_in_one_line(tmp_path, capsys, flags, message):
    checkpoint = save_tiny_checkpoint(tmp_path / "model.pth")
    assert predict.main(["--input", "a.png", *flags, "--opts", "MODEL.WEIGHTS", str(checkpoint)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("restored_catalogs", "tiny_shapes")
def test_evaluate_measures_tiles(tmp_path):
    flags = ["--config-file", str(CONFIG)]
    options = tiny_options(OUTPUT_DIR=tmp_path, SOLVER__MAX_ITER=1, TEST__EVAL_PERIOD=0)
    assert train.main([*flags, *options]) == 0
    results = {}
    for name, tile in {"plain": [], "one tile": ["--tile", "128"], "tiles": ["--tile", "64"]}.items():
        opts = [
            *options,
            "MODEL.WEIGHTS",
            str(tmp_path / "model_final.pth"),
            "OUTPUT_DIR",
            str(tmp_path / name),
        ]
        assert evaluate.main([*flags, *tile, *opts]) == 0
        folder = tmp_path / name / "inference"
        results[name] = [
            json.loads((folder / file).read_text())
            for file in ("coco_instances_results.json", "sem_seg_predictions.json")
        ]
        assert (folder / "panoptic" / "predictions.json").is_file()
    assert results["plain"] == results["one tile"]
    assert results["plain"] != results["tiles"]
