"""The predict command: overlays, errors, and images that cannot be read."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import TINY, save_tiny_checkpoint

from mask2former.options import COUNTED
from mask2former.predictor import Predictor
from mask2former.tools.predict import choose_model, find_images, main, output_paths, parse_arguments

ROOT = Path(__file__).parents[2]
SCALE = 5  # 90 pixels five times are below 512
COCO_R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("run") / "model_final.pth"))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Create two images and a text file in `in/`, below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(["a.png", "b.JPG"]):
        pixels = np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def predict(images, checkpoint):
    """Return a function that runs the command with the checkpoint."""
    return lambda *flags: main(["--input", *flags, "--opts", "MODEL.WEIGHTS", checkpoint])


@pytest.mark.parametrize(
    ("flags", "options", "task", "overlay"),
    [
        ("", {}, "panoptic", "output/a.png"),
        ("--precision bf16", {"precision": "bf16"}, "panoptic", "output/a.png"),
        ("--task instance --confidence-threshold .55", {"score_threshold": 0.55}, "instance", "output/a.png"),
        (
            "--task instance --confidence-threshold 0 --duplicate-iou .999",
            {"score_threshold": 0.0, "duplicate_iou": 0.999},
            "instance",
            "output/a.png",
        ),
        ("--output drawn.png", {}, "panoptic", "drawn.png"),
    ],
)
def test_an_overlay_is_what_the_predictor_finds(predict, checkpoint, capsys, flags, options, task, overlay):
    assert predict("in/a.png", *flags.split()) == 0
    expected = Predictor(checkpoint, **options)("in/a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(overlay)), expected.draw(task, scale=SCALE))
    found = f"{expected.count(task)} {'segments' if task == 'panoptic' else 'instances'}"
    assert f"in/a.png: {found} -> {overlay}" in capsys.readouterr().out


def test_the_legend_is_drawn_beside_the_image(predict, checkpoint):
    assert predict("in/a.png", "--legend", "--task", "semantic") == 0
    expected = Predictor(checkpoint)("in/a.png").draw("semantic", scale=SCALE, legend=True)
    drawn = np.asarray(Image.open("output/a.png"))
    assert drawn.shape[1] > SCALE * 90
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("task", "key"), [("instance", "score threshold"), ("panoptic", "OBJECT_MASK_THRESHOLD")]
)
def test_an_empty_result_says_why(predict, capsys, task, key):
    assert predict("in/a.png", "--task", task, "--confidence-threshold", "1.0") == 0
    out = capsys.readouterr().out
    assert "the best has 0." in out or "the best has 1.0" in out
    assert key in out
    untouched = Image.open("in/a.png").resize((90 * SCALE, 70 * SCALE), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.asarray(Image.open("output/a.png")), np.asarray(untouched))


def test_an_image_of_ordinary_size_is_not_enlarged(predict):
    Image.new("RGB", (300, 40), "green").save("wide.png")
    assert predict("wide.png") == 0
    assert Image.open("output/wide.png").size == (300, 40)


def test_unreadable_images_are_reported_and_the_others_drawn(predict, capsys):
    Path("in/aa.jpg").write_bytes(b"\xff\xd8 broken")
    assert predict("in", "gone*.png", "--output", "out") == 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.JPG"]
    err = capsys.readouterr().err
    assert "in/aa.jpg: is not an image" in err
    assert "gone*.png: no such file" in err
    assert "2 of 4 images could not be drawn" in err


def test_an_image_above_the_limit_of_pixels_is_reported(predict, capsys):
    assert predict("in/a.png", "in/b.JPG", "--max-megapixels", "0.006") == 1
    err = capsys.readouterr().err
    assert "in/a.png: is of 90 x 70 pixels, 0.0063 megapixels; the limit is 0.006 (INPUT.MAX_MEG" in err
    assert predict("in/a.png", "--max-megapixels", "0.0063") == 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-megapixels", "nan"),
        ("--max-megapixels", "-1"),
        ("--confidence-threshold", "nan"),
        ("--confidence-threshold", "-0.1"),
        ("--confidence-threshold", "1.5"),
        ("--confidence-threshold", "high"),
    ],
)
def test_numbers_out_of_range_are_errors_of_their_flag(predict, capsys, flag, value):
    with pytest.raises(SystemExit, match="2"):
        predict("in/a.png", flag, value)
    assert re.search(rf"error: argument {flag}: .*'{value}'", capsys.readouterr().err)


@pytest.mark.parametrize("output", ["in", "in/a.png"])
def test_an_image_is_not_overwritten_by_its_overlay(predict, capsys, output):
    before = Path("in/a.png").read_bytes()
    assert predict("in/a.png", "--output", output) == 1
    assert "in/a.png would overwrite the image" in capsys.readouterr().err
    assert Path("in/a.png").read_bytes() == before


def test_weights_without_a_config_need_a_config_file(images, checkpoint):
    opts = [str(part) for item in TINY.items() for part in item]
    arguments = ["--input", "in/a.png", "--config-file", COCO_R50, "--opts", *opts]
    assert main([*arguments, "MODEL.WEIGHTS", checkpoint]) == 0


PUBLISHED = "https://dl.fbaipublicfiles.com/maskformer/mask2former"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"{PUBLISHED}/coco/panoptic/maskformer2_R50_bs16_50ep/"),
        (["--config-file", f"configs/{COCO_R50}"], "coco/panoptic/maskformer2_R50_bs16_50ep/model_final_"),
        (["--opts", "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["--config-file", "own.yaml"], "--opts MODEL.WEIGHTS path/to/model_final.pth"),
        ([], "--model coco-panoptic-r50"),
    ],
)
def test_the_error_without_trained_weights_shows_what_to_add(images, capsys, arguments, message):
    Path("own.yaml").write_text("SEED: 1\n")
    assert main(["--input", "in/a.png", *arguments]) == 1
    err = capsys.readouterr().err
    assert "noise" in err
    assert "--opts MODEL.WEIGHTS " in err
    assert message in err
    assert not Path("output").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "gone.yaml"], "no config file 'gone.yaml'"),
        (["--model", "coco-panoptic-r5"], "near it: coco-panoptic-r50"),
        (["--opts", "MODEL.WEIGHTS", "gone.pth"], "gone.pth"),
        (["--opts", "MODEL.WEIGHTS"], "MODEL.WEIGHTS is alone"),
        (["--opts", "MODEL.WEIGHT", "x"], "did you mean MODEL.WEIGHTS"),
        (["--config-file", "x" * 300], "File name too long"),
    ],
)
def test_mistakes_are_one_line(images, capsys, arguments, message):
    assert main(["--input", "in/a.png", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err


def test_images_are_found_in_folders_globs_and_urls(images):
    Path("in/._a.png").touch()
    assert find_images(["in"]) == ["in/a.png", "in/b.JPG"]
    assert find_images(["in/*.png", "in/b.JPG"]) == ["in/a.png", "in/b.JPG"]
    assert find_images(["**/*.png"]) == ["in/a.png"]
    assert find_images(["none*.png", "https://host/x.png?a=*"]) == ["none*.png", "https://host/x.png?a=*"]
    with pytest.raises(ValueError, match="--input is '', which is no path"):
        find_images(["in", ""])
    Path("[odd].png").touch()
    assert find_images(["[odd].png"]) == ["[odd].png"]


def test_other_files_of_a_folder_are_left_out_with_their_number(images, caplog):
    for name in ["a.json", "b.json", "c.heic"]:
        Path("in", name).touch()
    find_images(["in"])
    (message,) = caplog.messages
    assert message == "in: left out 4 files whose suffix is not that of an image: a.json, b.json, c.heic, ..."


def test_a_folder_without_images_says_what_it_holds(images, checkpoint, capsys):
    Path("other").mkdir()
    for name in ["a.heic", "b.heic", "c.txt"]:
        Path("other", name).touch()
    assert main(["--input", "other", "--opts", "MODEL.WEIGHTS", checkpoint]) == 1
    assert "error: other: is a folder, not an image; it holds 2 .heic, 1 .txt" in capsys.readouterr().err


def test_overlays_have_different_names():
    images = ["x/a.jpg", "y/a.jpg", "z/a.jpg", "https://h/b.png?size=2", "https://h/image", "c.tiff"]
    names = ["a.jpg", "a_2.jpg", "a_3.jpg", "b.png", "image.png", "c.tiff"]
    assert output_paths(images, "out") == [Path("out") / name for name in names]
    assert output_paths(["a.jpg"], "out/b.png") == [Path("out/b.png")]
    with pytest.raises(ValueError, match="one file for 6 images"):
        output_paths(images, "b.png")


def test_a_checkpoint_is_read_once(predict, monkeypatch):
    read = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: read.append(args) or load(*args, **options))
    assert predict("in/a.png") == 0
    assert len(read) == 1


def test_the_script_runs_in_any_folder_and_under_its_own_name(images):
    command = [sys.executable, str(ROOT / "demo/demo.py"), "--input", "in/a.png"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=images)
    assert run.returncode == 1
    assert run.stderr.startswith("error: MODEL.WEIGHTS is")
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("flags", "task"), [([], "panoptic"), (["--task", "instance"], "instance")])
def test_only_the_task_that_is_drawn_is_computed(checkpoint, flags, task):
    args = parse_arguments(["--input", "a.png", *flags, "--opts", "MODEL.WEIGHTS", checkpoint])
    cfg, _ = choose_model(args)
    test = cfg.MODEL.MASK_FORMER.TEST
    assert [name for name in COUNTED if test[f"{name.upper()}_ON"]] == [task]
