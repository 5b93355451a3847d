"""The convert command: both ways without a loss, and what it refuses."""

import json
import shutil

import pytest
import torch
from hub_folders import save_small_checkpoint, small_config
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoint import METADATA, NAMES

from mask2former.predictor import Predictor
from mask2former.tools.convert import main
from mask2former.tools.predict import main as predict
from mask2former.weights.hub.folder import CONFIG, PROCESSOR, SAFETENSORS

VARIANTS = {
    "swin": ("swin", {}),
    "basic blocks": ("resnet", {}),
    "bottlenecks": ("resnet", {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.WIDTH_PER_GROUP": 4}),
    "MaskFormer": (
        "maskformer, resnet",
        {"MODEL.MASK_FORMER.TEST.INSTANCE_ON": True, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True},
    ),
    "MaskFormer on Swin": ("maskformer, swin", {"MODEL.MASK_FORMER.TEST.INSTANCE_ON": True}),
    "trained norms": ("resnet", {"MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 1}),
    "projections": (
        "swin",
        {"MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": True, "MODEL.MASK_FORMER.HIDDEN_DIM": 64},
    ),
}


def load(path):
    return torch.load(path, weights_only=True)


def same_bits(a, b):
    assert {n: (t.dtype, t.shape) for n, t in a.items()} == {n: (t.dtype, t.shape) for n, t in b.items()}
    for name in a:
        assert a[name].numpy().tobytes() == b[name].numpy().tobytes(), name


def same_results(a, b, image):
    assert (a.class_names, a.colors) == (b.class_names, b.colors)
    first, second = a(image), b(image)
    assert first.panoptic.segments == second.panoptic.segments
    assert (first.panoptic.ids == second.panoptic.ids).all()
    assert (first.semantic == second.semantic).all()
    assert torch.equal(first.instances.scores, second.instances.scores)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of a small Swin, and the folder that it was converted to."""
    root = tmp_path_factory.mktemp("model")
    path = save_small_checkpoint(root / "model.pth", "swin")
    assert main([str(path), str(root / "folder")]) == 0
    return path, root / "folder"


@pytest.fixture
def image(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "image.png"
    Image.fromarray(torch.randint(0, 256, (70, 90, 3), dtype=torch.uint8).numpy()).save(path)
    return str(path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_comes_back_bit_for_bit_with_config_and_classes(tmp_path, variant, image):
    backbone, values = VARIANTS[variant]
    values = {**values, "INPUT.MIN_SIZE_TEST": 32, "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.1}
    path = save_small_checkpoint(tmp_path / "model.pth", backbone, **values)
    folder, again = tmp_path / "folder", tmp_path / "again.pth"
    assert main([str(path), str(folder)]) == main([str(folder), str(again)]) == 0
    before, after = load(path), load(again)
    same_bits(before["model"], after["model"])
    assert before["config"] == after["config"]
    assert before["metadata"] == after["metadata"]
    same_results(Predictor(path), Predictor(folder), image)


def test_a_folder_comes_back_with_the_same_files(model, tmp_path):
    """As if it came from the hub: without our key, in half precision, with fields that nothing here reads."""
    folder = shutil.copytree(model[1], tmp_path / "hub")
    tensors = {name: tensor.half() for name, tensor in load_file(folder / SAFETENSORS).items()}
    save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text())
    del config["mask2former"]
    config |= {"init_std": 0.05, "dtype": "float16", "transformers_version": "4.25.0"}
    processor = {
        "size": {"height": 384, "width": 384},
        "feature_extractor_type": "MaskFormerFeatureExtractor",
    }
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / PROCESSOR).write_text(json.dumps(processor))
    path, again = tmp_path / "model.pth", tmp_path / "again"
    assert main([str(folder), str(path)]) == main([str(path), str(again)]) == 0
    same_bits(load_file(again / SAFETENSORS), tensors)
    written = json.loads((again / CONFIG).read_text())
    assert written.pop("mask2former")["metadata"]["stuff_classes"] == NAMES
    assert written == config
    assert json.loads((again / PROCESSOR).read_text()) == processor


def test_keys_that_are_typed_say_what_a_folder_does_not(model, tmp_path):
    folder = shutil.copytree(model[1], tmp_path / "hub")
    config = json.loads((folder / CONFIG).read_text())
    del config["mask2former"]
    (folder / CONFIG).write_text(json.dumps(config))
    target = tmp_path / "model.pth"
    keys = ["MODEL.MASK_FORMER.THING_IDS", "[0, 1]", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True"]
    assert main([str(folder), str(target), *keys]) == 0
    assert load(target)["metadata"] == {"stuff_classes": NAMES, "thing_ids": [0, 1]}
    test = Predictor(target).cfg.MODEL.MASK_FORMER.TEST
    assert (test.SEMANTIC_ON, test.PANOPTIC_ON, test.INSTANCE_ON) == (True, True, False)


def test_a_checkpoint_without_a_config_needs_one(model, tmp_path, capsys):
    path, target = tmp_path / "bare.pth", tmp_path / "folder"
    torch.save({"model": load(model[0])["model"]}, path)
    assert main([str(path), str(target)]) == 1
    assert "bare.pth: holds weights but no config; add --config-file FILE" in capsys.readouterr().err
    yaml = tmp_path / "small.yaml"
    yaml.write_text(small_config("swin").dump())
    assert main([str(path), str(target), "--config-file", str(yaml)]) == 0
    same_bits(load_file(target / SAFETENSORS), load_file(model[1] / SAFETENSORS))


def test_the_predict_command_takes_a_folder(model, tmp_path, image, capsys):
    output = str(tmp_path / "out")
    assert predict(["--input", image, "--output", output, "--opts", "MODEL.WEIGHTS", str(model[1])]) == 0
    assert "image.png: " in capsys.readouterr().out


def test_nothing_is_replaced_unless_asked(model, tmp_path, capsys):
    path, folder = model
    target = tmp_path / "model.pth"
    target.write_text("mine")
    assert main([str(folder), str(target)]) == 1
    assert f"{target} exists; --overwrite replaces it" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main([str(folder), str(target), "--overwrite"]) == 0
    same_bits(load(target)["model"], load(path)["model"])
    mine = tmp_path / "folder" / PROCESSOR
    mine.parent.mkdir()
    mine.write_text("mine")
    assert main([str(path), str(mine.parent)]) == 1
    assert f"{mine} exists; --overwrite" in capsys.readouterr().err
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (1, "folder", "is a folder of transformers, so TARGET must end with .pth"),
        (0, "other.pth", "is a checkpoint, so TARGET must be a folder"),
        (0, "file.txt", "file.txt is a file, where a folder would be written; type another TARGET"),
        (1, "folder.pth", "folder.pth is a folder, where a checkpoint would be written"),
    ],
)
def test_the_target_is_of_the_other_kind(model, tmp_path, capsys, source, target, message):
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "folder.pth").mkdir()
    assert main([str(model[source]), str(tmp_path / target), "--overwrite"]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "file.txt").read_text() == "mine"


def changed_tensors(folder, change):
    tensors = load_file(folder / SAFETENSORS)
    change(tensors)
    save_file(tensors, folder / SAFETENSORS)


MISFITS = {
    "missing": (lambda t: t.pop("class_predictor.bias"), "lacks class_predictor.bias"),
    "unexpected": (
        lambda t: t.update({"model.new.weight": torch.zeros(2)}),
        "holds model.new.weight, which its config has not",
    ),
    "of another layer": (
        lambda t: t.update({"model.transformer_module.input_projections.0.bias": torch.zeros(2)}),
        "holds model.transformer_module.input_projections.0.bias, which its config has not",
    ),
    "shape": (
        lambda t: t.update({"class_predictor.bias": torch.zeros(9)}),
        "class_predictor.bias is [9]; by its config [5]",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_do_not_fit_are_one_line_with_their_name_in_the_folder(model, tmp_path, capsys, case):
    change, message = MISFITS[case]
    folder = shutil.copytree(model[1], tmp_path / "folder")
    changed_tensors(folder, change)
    assert main([str(folder), str(tmp_path / "model.pth")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {folder}: {message}"
    assert not (tmp_path / "model.pth").exists()


def test_a_model_that_transformers_lacks_is_an_error_that_names_the_key(tmp_path, capsys):
    path = save_small_checkpoint(tmp_path / "model.pth", "resnet", **{"MODEL.SEM_SEG_HEAD.NORM": ""})
    assert main([str(path), str(tmp_path / "folder")]) == 1
    message = "MODEL.SEM_SEG_HEAD.NORM is ''; transformers has only 'GN'"
    assert f"error: {path}: {message}" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_classes_without_names_and_without_metadata_survive(tmp_path):
    path = save_small_checkpoint(tmp_path / "model.pth", "swin", metadata=None)
    folder, again = tmp_path / "folder", tmp_path / "again.pth"
    assert main([str(path), str(folder)]) == main([str(folder), str(again)]) == 0
    assert json.loads((folder / CONFIG).read_text())["id2label"]["3"] == "class 3"
    assert load(again)["config"] == load(path)["config"]
    assert load(again)["metadata"] == {"thing_ids": METADATA["thing_ids"]}
