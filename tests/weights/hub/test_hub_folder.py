"""Folders of transformers: weights in one file or in shards, and what is wrong with a folder."""

import json
import pickle
import shutil

import pytest
import torch
from hub_folders import save_small_checkpoint, small_config
from safetensors.torch import load_file, save_file

from mask2former.data import MetadataCatalog
from mask2former.engine.build import construct_model
from mask2former.predictor import Predictor
from mask2former.tools.convert import main
from mask2former.weights.hub.folder import CONFIG, PICKLE, PROCESSOR, SAFETENSORS
from mask2former.weights.load import WeightsError, load_weights, read_checkpoint
from mask2former.weights.read import find_file

INDEX = f"{SAFETENSORS}.index.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a small Swin."""
    folder = tmp_path_factory.mktemp("hub")
    assert main([str(save_small_checkpoint(folder / "model.pth", "swin")), str(folder / "swin")]) == 0
    return folder / "swin"


@pytest.fixture
def folder(written, tmp_path):
    """A copy to change."""
    return shutil.copytree(written, tmp_path / "swin")


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def split(folder):
    """Replace the file of weights by two shards, as save_pretrained does for large models."""
    tensors = load_file(folder / SAFETENSORS)
    (folder / SAFETENSORS).unlink()
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[:200],
        "model-00002-of-00002.safetensors": names[200:],
    }
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, part in shards.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_shards_and_pickles_hold_the_same_as_one_file(written, folder):
    expected = read_checkpoint(written).model
    split(folder)
    assert same_tensors(read_checkpoint(folder).model, expected)
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(load_file(written / SAFETENSORS), folder / PICKLE)
    assert same_tensors(read_checkpoint(folder).model, expected)


def test_a_pickle_with_code_is_refused_and_not_run(folder, tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (folder / SAFETENSORS).unlink()
    (folder / PICKLE).write_bytes(pickle.dumps({"a": Touch()}))
    with pytest.raises(WeightsError, match=rf"{PICKLE}: holds code or objects"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_safetensors_come_before_a_pickle(folder):
    (folder / PICKLE).write_bytes(b"not read")
    read_checkpoint(folder)


def without(name):
    def remove(folder):
        tensors = load_file(folder / SAFETENSORS)
        del tensors[name]
        save_file(tensors, folder / SAFETENSORS)

    return remove


QUERY = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.bias"
BREAK = {
    "no weights": (lambda folder: (folder / SAFETENSORS).unlink(), f"{SAFETENSORS}: no such file"),
    "text": (lambda folder: (folder / CONFIG).write_text("{"), f"{CONFIG}: is not JSON"),
    "list": (lambda folder: (folder / CONFIG).write_text("[]"), f"{CONFIG}: holds a list"),
    "bytes": (lambda folder: (folder / PROCESSOR).write_bytes(b"\xff\xfe"), f"{PROCESSOR}: is not JSON"),
    "deep": (lambda folder: (folder / CONFIG).write_text("[" * 100_000), f"{CONFIG}: is not JSON"),
    "another model": (
        lambda folder: change(folder / CONFIG, model_type="oneformer"),
        f"{CONFIG}: model_type is 'oneformer'",
    ),
    "a field": (
        lambda folder: change(folder / CONFIG, feature_strides=[4, 8]),
        rf"{CONFIG}: feature_strides is \[4, 8\]",
    ),
    "a mean": (
        lambda folder: change(folder / PROCESSOR, image_mean=None),
        f"{PROCESSOR}: image_mean is None",
    ),
    "our key": (lambda folder: change(folder / CONFIG, mask2former=3), f"{CONFIG}: mask2former is 3"),
    "a third of a tensor": (without(QUERY), f"{SAFETENSORS}: {QUERY} is missing"),
    "cut off": (
        lambda folder: (folder / SAFETENSORS).write_bytes((folder / SAFETENSORS).read_bytes()[:-9]),
        f"{SAFETENSORS}: is truncated",
    ),
}


@pytest.mark.parametrize("case", BREAK)
def test_a_broken_folder_is_an_error_that_names_file_and_key(folder, case):
    damage, message = BREAK[case]
    damage(folder)
    with pytest.raises(WeightsError, match=message) as error:
        read_checkpoint(folder)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map must name a file of this folder"),
        ({"a": "../model.safetensors"}, "weight_map must name a file of this folder"),
        ({"a": 3}, "weight_map must name"),
        ({"a": "lost.safetensors"}, f"lost.safetensors: no such file, which {INDEX} names"),
        ({"a": 5000 * "a"}, f"no such file, which {INDEX} names"),
        ({"a": "one.safetensors"}, "names 'a', which one.safetensors does not hold"),
    ],
)
def test_a_broken_index_is_an_error(folder, weight_map, message):
    (folder / SAFETENSORS).rename(folder / "one.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(folder)


def test_a_folder_without_a_processor_is_read_with_transformers_defaults(folder, caplog):
    (folder / PROCESSOR).unlink()
    assert read_checkpoint(folder).config is not None
    assert f"has no {PROCESSOR}" in caplog.text


def test_weights_of_a_folder_start_a_model_with_other_classes(folder):
    """As MODEL.WEIGHTS does it in training: the class head starts afresh, everything else is loaded."""
    cfg = small_config("swin", **{"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9})
    model = construct_model(cfg)
    assert find_file(folder) == folder
    report = load_weights(model, str(folder))
    assert not report.problems
    assert {name.rpartition(".")[0] for name in report.adapted} == {"sem_seg_head.predictor.class_embed"}
    expected = read_checkpoint(folder).model["backbone.layers.1.blocks.1.attn.qkv.weight"]
    assert torch.equal(model.backbone.layers[1].blocks[1].attn.qkv.weight, expected)


def test_a_folder_trained_on_other_classes_forgets_our_key(folder, caplog):
    change(folder / CONFIG, id2label={str(k): f"new {k}" for k in range(4)})
    checkpoint = read_checkpoint(folder)
    assert f"{CONFIG}: its key mask2former is of other classes than id2label, and is ignored" in caplog.text
    assert checkpoint.metadata == {"stuff_classes": [f"new {k}" for k in range(4)]}
    assert Predictor(folder).cfg.MODEL.MASK_FORMER.THING_IDS == []


def test_labels_of_a_known_dataset_are_enough_for_a_predictor(tmp_path):
    cityscapes = MetadataCatalog.get("cityscapes_fine_instance_seg_val").thing_classes
    metadata = {"thing_classes": cityscapes}
    keys = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 8, "MODEL.MASK_FORMER.THING_IDS": [1]}
    path = save_small_checkpoint(tmp_path / "model.pth", "swin", metadata, **keys)
    assert main([str(path), str(tmp_path / "hub")]) == 0
    change(tmp_path / "hub" / CONFIG, mask2former=None)
    predictor = Predictor(tmp_path / "hub")
    assert predictor.class_names == cityscapes
    assert predictor.colors[0] == (220, 20, 60)  # a person in the official colors
    keys = predictor.cfg.MODEL.MASK_FORMER
    assert list(range(8)) == keys.THING_IDS
    assert (keys.TEST.SEMANTIC_ON, keys.TEST.INSTANCE_ON, keys.TEST.PANOPTIC_ON) == (False, True, False)


def test_a_missing_tensor_is_an_error_of_the_model(folder):
    without("model.transformer_module.queries_features.weight")(folder)
    with pytest.raises(WeightsError, match=r"missing +sem_seg_head.predictor.query_feat.weight"):
        Predictor(folder)
