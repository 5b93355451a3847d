"""The predict command on films: real files, ids, files of tracks, interrupts and mistakes."""

import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import save_tiny_checkpoint

from mask2former.predictor import Predictor
from mask2former.tools.predict import main, open_predictor, parse_arguments
from mask2former.tracking.formats import TracksFile
from mask2former.tracking.tracker import Tracker
from mask2former.tracking.video_files import FilmReader, FilmWriter

SCALE = 8  # 64 pixels eight times are 512
FRAMES = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("run") / "model_final.pth"))


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Create a film `a.mp4`, and its frames in `in/`, below the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    with FilmWriter(Path("a.mp4"), 8.0) as film:
        for number in range(FRAMES):
            film.write(noise(number // 2), number / 8)
            Image.fromarray(noise(number // 2)).save(f"in/{number}.png")
    return tmp_path


@pytest.fixture
def predict(inputs, checkpoint):
    """Return a function that runs the command with the checkpoint."""
    return lambda *flags: main([*flags, "--opts", "MODEL.WEIGHTS", checkpoint])


def frames_of(path):
    return [frame.image for frame in FilmReader(str(path))]


def test_a_film_is_drawn_with_ids(predict, checkpoint, capsys):
    assert predict("--input", "a.mp4", "--task", "instance", "--tracks", "t.json", "--coco", "c.json") == 0
    reader = FilmReader("output/a.mp4")
    found, expected = [frame.image for frame in reader], list(Predictor(checkpoint).track(frames_of("a.mp4")))
    assert reader.rate == 8 and len(found) == len(expected) == FRAMES
    for image, result in zip(found, expected, strict=True):
        drawn = result.draw("instance", scale=SCALE)
        assert image.shape == drawn.shape
        assert np.corrcoef(image.ravel(), drawn.ravel())[0, 1] > 0.98
    ids = {number for result in expected for number in result.track_ids["instance"]}
    assert capsys.readouterr().out == f"a.mp4: {FRAMES} frames, {len(ids)} objects -> output/a.mp4\n"
    tracks = TracksFile(Path("x"), "instance")
    tracks.begin()
    for result in expected:
        tracks.add(result)
    assert json.loads(Path("t.json").read_text()) == tracks.rows()
    coco = json.loads(Path("c.json").read_text())
    assert [(row["file_name"], row["frame_id"]) for row in coco["images"]] == [
        (f"a.mp4/{number:06d}.jpg", number) for number in range(FRAMES)
    ]
    assert {row["track_id"] for row in coco["annotations"]} == ids


def test_images_are_frames_if_asked(predict, checkpoint, capsys):
    assert predict("--input", "in", "--output", "separate") == 0
    assert predict("--input", "in", "--output", "tracked", "--track") == 0
    assert f"{FRAMES} images: {FRAMES} frames, " in capsys.readouterr().out
    predictor = open_predictor(parse_arguments(["--input", "in", "--opts", "MODEL.WEIGHTS", checkpoint]))
    files = [f"in/{number}.png" for number in range(FRAMES)]
    for file, result in zip(files, predictor.track(files), strict=True):
        for folder, drawn in (("tracked", result), ("separate", predictor(file))):
            expected = drawn.draw("panoptic", scale=SCALE)
            np.testing.assert_array_equal(np.asarray(Image.open(Path(folder, Path(file).name))), expected)


def test_images_become_a_film(predict):
    assert predict("--input", "in", "--output", "out/b.avi", "--fps", "4", "--task", "semantic") == 0
    reader = FilmReader("out/b.avi")
    assert reader.rate == pytest.approx(4) and len(list(reader)) == FRAMES


def test_films_share_files_of_tracks_and_a_broken_one_is_reported(predict, capsys):
    Path("broken.mp4").write_bytes(Path("a.mp4").read_bytes()[:500])
    Path("b.avi").write_bytes(Path("a.mp4").read_bytes())  # FFmpeg looks inside
    flags = ["--output", "out", "--tracks", "t.json", "--max-absent", "0"]
    assert predict("--input", "a.mp4", "broken.mp4", "b.avi", *flags) == 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.mp4", "b.avi"]
    err = capsys.readouterr().err
    assert "error: broken.mp4: is not a film that can be read here, or is broken" in err
    assert {row["video_id"] for row in json.loads(Path("t.json").read_text())} == {1, 3}


def test_one_coco_file_of_separate_images(predict, checkpoint):
    Path("in/x.jpg").write_bytes(b"broken")
    assert predict("--input", "in", "--coco", "all.json") == 1
    content = json.loads(Path("all.json").read_text())
    assert [row["file_name"] for row in content["images"]] == [f"in/{n}.png" for n in range(FRAMES)]
    expected = Predictor(checkpoint)("in/0.png").to_coco("in/0.png")
    first = [row for row in content["annotations"] if row["image_id"] == 1]
    assert first == json.loads(json.dumps(expected["annotations"])) and first


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--input a.mp4 in", "--input has films, such as a.mp4, and images; give them one after the other"),
        ("--input in --tracks t.json", "--tracks is for films; add --track if the images are frames of one"),
        ("--input a.mp4 --legend", "--legend is for images, not for films"),
        ("--input in --output b.wmv", "--output b.wmv: films are written as .mp4, "),
        ("--input a.mp4 a.mp4 --output b.mp4", "--output b.mp4 is one file for 2 films; give a folder"),
        ("--input a.mp4 --output .", "the drawn film a.mp4 would overwrite the film itself"),
        ("--input a.mp4 --output ./a.mp4", "would overwrite the film itself; give another --output"),
        (
            "--input a.mp4 --task semantic --coco c.json",
            "--coco: semantic results have no objects; type --task",
        ),
        ("--input a.mp4 --task semantic --tracks t.json", "--tracks: semantic results have no objects"),
        ("--input gone.mp4", "error: gone.mp4: no such film"),
        ("--input a.mp4 --coco a.mp4/c.json", "a.mp4"),
        ("--input a.mp4 --tracks a.mp4/t.json", "a.mp4"),
        ("--input in --coco a.mp4/c.json", "a.mp4"),
        ("--webcam 63", "error: webcam 63: there is no webcam 63 here, or another program uses it"),
    ],
)
def test_mistakes_are_one_line(predict, capsys, flags, message):
    before = Path("a.mp4").read_bytes()
    assert predict(*flags.split()) == 1
    (err,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in err
    assert Path("a.mp4").read_bytes() == before and not Path("output").exists()


@pytest.mark.parametrize("flags", ["", "--input a.mp4 --webcam 0", "--webcam x", "--input a.mp4 --fps 0"])
def test_wrong_flags_end_with_the_usage(predict, capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        predict(*flags.split())
    assert "usage: " in capsys.readouterr().err


def test_a_webcam_is_drawn_until_ctrl_c(predict, monkeypatch, capsys):
    real, reads = cv2.VideoCapture, []

    class Camera:
        """The film again and again, then Ctrl-C."""

        def __init__(self, source, *_):
            self.film = real("a.mp4" if source == 0 else source)

        def __getattr__(self, name):
            return getattr(self.film, name)

        def read(self):
            reads.append(1)
            if len(reads) == 4:
                raise KeyboardInterrupt
            return self.film.read()

    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", Camera)
        assert predict("--webcam", "0", "--coco", "c.json") == 0
    assert "webcam 0: 3 frames, " in capsys.readouterr().out
    assert len(json.loads(Path("c.json").read_text())["images"]) == 3


@pytest.fixture
def fresh_ctrl_c():
    """Handle SIGINT as a new process does: training in this process leaves a handler of its own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_a_playable_film(predict, monkeypatch, capsys, fresh_ctrl_c, number):
    before, updates = signal.getsignal(signal.SIGTERM), []
    update = Tracker.update

    def interrupted(tracker, objects):
        updates.append(1)
        if len(updates) == 4:
            os.kill(os.getpid(), number)
        return update(tracker, objects)

    monkeypatch.setattr(Tracker, "update", interrupted)
    assert (
        predict("--input", "a.mp4", "--output", "film.mp4", "--coco", "c.json", "--tracks", "t.json") == 130
    )
    out, err = capsys.readouterr()
    assert "a.mp4: 3 frames, " in out and "error: a.mp4: interrupted after 3 frames\n" in err
    assert len(frames_of("film.mp4")) == len(json.loads(Path("c.json").read_text())["images"]) == 3
    assert {len(row["segmentations"]) for row in json.loads(Path("t.json").read_text())} == {3}
    assert not [path.name for path in Path().iterdir() if "unfinished" in path.name]
    assert signal.getsignal(signal.SIGTERM) == before
