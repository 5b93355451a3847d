"""The command `mask2former web`: its model, its address, and errors of one line."""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
from tiny_checkpoint import save_tiny_checkpoint

from mask2former.data.datasets.shapes import CATEGORIES, write_shapes
from mask2former.predictor import Predictor
from mask2former.tools.web import find_examples, main, open_model, parse_arguments
from mask2former.web.server import listen

NO_GRADIO = "error: the page needs Gradio; type pip install 'mask2former[web]'\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("run") / "model_final.pth"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_is_for_this_machine_alone_unless_told_otherwise():
    args = parse_arguments([])
    assert (args.model, args.host, args.port) == (None, "127.0.0.1", 7860)
    with listen(args.host, 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model is given, and `make run` has not left output/shapes/model_final.pth here; type "),
        (["gone.pth"], "gone.pth"),
        (["coco-panoptic-r5"], "near it: coco-panoptic-r50"),
        (["."], "."),
        (["--host", "no host"], "cannot listen on no host, port 0 (Name or service not known)"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1, port 0 (Cannot assign requested address)"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, message):
    assert main([*arguments, "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_busy_port_is_one_line_before_the_model_is_read(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["gone.pth", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot listen on 127.0.0.1, port {port} (Address already in use)")
    assert error.count("\n") == 1


def test_without_gradio_the_error_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("mask2former.tools.web.find_spec", lambda name: None)
    assert main([]) == 1
    assert capsys.readouterr().err == NO_GRADIO


def test_the_model_of_make_run_is_the_default(checkpoint, folder):
    (folder / "output/shapes").mkdir(parents=True)
    (folder / "output/shapes/model_final.pth").symlink_to(checkpoint)
    predictor = open_model(None, 3.0, "bf16")
    assert predictor.cfg.MODEL.WEIGHTS == "output/shapes/model_final.pth"
    assert predictor.cfg.INPUT.MAX_MEGAPIXELS == 3
    assert predictor.augmented is None


def test_int8_needs_images_to_calibrate(checkpoint, folder, capsys):
    assert main([checkpoint, "--port", "0", "--precision", "int8"]) == 1
    assert "calibrate" in capsys.readouterr().err


def test_examples_are_drawn_images_for_a_model_that_knows_their_classes(checkpoint, folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    predictor = Predictor(checkpoint)
    predictor.class_names = [category["name"] for category in CATEGORIES]
    assert find_examples(predictor) == []
    write_shapes(folder, {"train": 1, "val": 8})
    assert [path.name for path in find_examples(predictor)] == [f"{k:06d}.jpg" for k in range(1, 7)]
    predictor.class_names = predictor.class_names[::-1]
    assert find_examples(predictor) == []


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs Gradio")
def test_the_command_serves_until_it_is_stopped_and_leaves_no_files(checkpoint, folder):
    """In a process of its own, as the end of a server closes what it shares with its process."""
    command = [sys.executable, "-m", "mask2former", "web", checkpoint, "--port", "0"]
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        uploads = list(folder.glob("mask2former-web-*"))
        process.terminate()
    assert line.startswith("open http://127.0.0.1:") and len(uploads) == 1
    assert process.returncode == 0
    assert not uploads[0].exists()
