"""Exported files in the place of checkpoints, in `Predictor` and in commands, or refused."""

import numpy as np
import pytest
import tiny_runs
import torch
from tiny_checkpoint import METADATA, NAMES, tiny_config
from tiny_runs import restored_catalogs, restored_log, tiny_shapes
from toy_exports import SUFFIXES, Toy, metadata_text, write_toy

from mask2former.config import load_config, with_values
from mask2former.engine.checkpoint.remote import run_folder
from mask2former.engine.evaluate import evaluate_checkpoint
from mask2former.engine.setup.begin import Run
from mask2former.engine.setup.resolve import resolve_config
from mask2former.engine.setup.trained_model import stored_config
from mask2former.export.exported_model import ExportedModel, read_trained
from mask2former.export.metadata import KEY, build_metadata, parse_metadata
from mask2former.export.runtimes import Exported
from mask2former.modeling.postprocessing.inference import build_inference_options
from mask2former.predictor import Predictor
from mask2former.tools.evaluate import main as run_evaluate
from mask2former.tools.predict import main as predict
from mask2former.utils.image_io import write_image
from mask2former.weights.load import WeightsError, read_checkpoint

__all__ = ["restored_catalogs", "restored_log", "tiny_shapes"]


class Logits(torch.nn.Module):
    """The outputs of an exported file."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        predictions = self.model.network(images)
        return predictions.layers[-1].class_logits, predictions.mask_logits()


@pytest.fixture(scope="module")
def checkpoint_and_export(tmp_path_factory):
    """A model of the drawn dataset as a checkpoint and, for images of 64x64, as a file of torch.export."""
    folder = tmp_path_factory.mktemp("exported")
    cfg, model = tiny_runs.save_ground_finder(folder / "model.pth")
    with torch.no_grad():
        program = torch.export.export(Logits(model), (torch.zeros(1, 3, 64, 64),))
    extra = {KEY: build_metadata(cfg, {}).to_json()}
    torch.export.save(program, folder / "model.pt2", extra_files=extra)
    return folder / "model.pth", folder / "model.pt2"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    return {suffix: write_toy(folder, suffix) for suffix in SUFFIXES}


def random_images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, size, dtype=np.uint8) for size in ((90, 140, 3), (64, 64, 3))]


def in_torch(cfg):
    """The toy as a model that torch computes."""
    exported = Exported(parse_metadata(metadata_text(), "toy"), torch.device("cpu"), Toy())
    return ExportedModel(exported, inference=build_inference_options(cfg), num_classes=len(NAMES))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_results_are_those_of_the_network_in_torch(files, suffix):
    predictor = Predictor(files[suffix])
    assert predictor.class_names == NAMES
    assert predictor.colors == [tuple(color) for color in METADATA["stuff_colors"]]
    results = predictor(random_images(), 2)
    predictor.model = in_torch(predictor.cfg)
    for found, expected in zip(results, predictor(random_images()), strict=True):
        assert found.tasks == expected.tasks == ["panoptic", "instance", "semantic"]
        assert (found.panoptic.ids == expected.panoptic.ids).mean() > 0.999
        assert (found.semantic == expected.semantic).mean() > 0.999
        torch.testing.assert_close(found.instances.scores, expected.instances.scores)


def test_the_files_config_can_be_changed(files):
    cfg = stored_config(read_trained(files[".onnx"]), ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False])
    assert Predictor(cfg)(random_images()[0]).tasks == ["instance", "semantic"]


def test_views_are_averaged(files):
    on = [f"MODEL.MASK_FORMER.TEST.{task}_ON" for task in ("PANOPTIC", "INSTANCE")]
    options = [*(part for key in on for part in (key, False)), "TEST.AUG.ENABLED", True]
    cfg = stored_config(read_trained(files[".onnx"]), [*options, "TEST.AUG.MIN_SIZES", (64, 96)])
    predictor = Predictor(cfg)
    found = predictor(random_images()[0]).semantic
    predictor.augmented.model = in_torch(cfg)
    assert (found == predictor(random_images()[0]).semantic).mean() > 0.999


def test_predict_draws_with_an_exported_file(files, tmp_path):
    write_image(tmp_path / "image.png", random_images()[0])
    arguments = ["--input", str(tmp_path / "image.png"), "--output", str(tmp_path / "drawn")]
    assert predict([*arguments, "--opts", "MODEL.WEIGHTS", str(files[".onnx"])]) == 0
    assert (tmp_path / "drawn/image.png").is_file()


def evaluate(folder, weights, *options):
    """Run the command on the drawn dataset; return its exit code and the metrics in its log."""
    options = [*options, *tiny_runs.tiny_options(OUTPUT_DIR=folder, MODEL__WEIGHTS=weights)]
    return run_evaluate(["--config-file", str(tiny_runs.CONFIG), *options])


def test_evaluate_measures_an_exported_file_as_its_checkpoint(checkpoint_and_export, tiny_shapes, tmp_path):
    checkpoint, exported = checkpoint_and_export
    cfg = resolve_config(tiny_runs.tiny_config(MODEL__WEIGHTS=checkpoint), eval_only=True)
    results = evaluate_checkpoint(cfg, Run(run_folder(tmp_path / "checkpoint")))
    metrics = {"sem_seg": "mIoU", "segm": "AP", "panoptic_seg": "PQ"}
    expected = [[task, name, results[task][name], 0.01] for task, name in metrics.items()]
    assert results["panoptic_seg"]["PQ"] > 1
    assert evaluate(tmp_path / "a", exported, "TEST.EXPECTED_RESULTS", str(expected)) == 0
    expected[0][2] += 1
    assert evaluate(tmp_path / "b", exported, "TEST.EXPECTED_RESULTS", str(expected)) == 1


def test_evaluate_refuses_a_precision_as_the_predictor_does(
    checkpoint_and_export, tiny_shapes, tmp_path, capsys
):
    assert evaluate(tmp_path, checkpoint_and_export[1], "--precision", "bf16") == 1
    assert "precision 'bf16' is for files of OpenVINO alone" in capsys.readouterr().err.splitlines()[-1]


def test_training_from_an_exported_file_is_an_error_of_one_line(files, tiny_shapes, tmp_path, capsys):
    assert tiny_runs.run_train(tmp_path, MODEL__WEIGHTS=files[".onnx"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "toy.onnx: is an exported file, which predicts, but holds no weights to load" in error


def test_another_number_of_classes_is_an_error(files):
    options = ["MODEL.WEIGHTS", str(files[".onnx"]), "MODEL.DEVICE", "cpu"]
    cfg = load_config("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", options)
    with pytest.raises(WeightsError, match=r"toy.onnx: predicts 4 classes, but .*NUM_CLASSES is 133"):
        Predictor(cfg)


def test_a_layer_that_the_file_lacks_is_an_error(files):
    values = {"MODEL.WEIGHTS": str(files[".onnx"]), "MODEL.MASK_FORMER.TEST.LAYER": 0}
    with pytest.raises(ValueError, match=r"TEST.LAYER is 0, but .*toy.onnx predicts with the last layer"):
        Predictor(with_values(tiny_config(), values, "test"))


def test_bfloat16_is_refused_where_the_file_decides(files):
    with pytest.raises(ValueError, match="precision 'bf16' is for files of OpenVINO alone"):
        Predictor(files[".onnx"], precision="bf16")
    assert Predictor(files[".xml"], precision="bf16")(random_images()[0]).tasks


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_are_not_read_from_an_exported_file(files, suffix):
    with pytest.raises(WeightsError, match="is an exported file, which predicts, but holds no weights"):
        read_checkpoint(files[suffix])


def test_an_exported_file_is_not_trained(files):
    with pytest.raises(TypeError, match="no weights to train"):
        Predictor(files[".onnx"]).model.train()([])
