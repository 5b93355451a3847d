"""Films written and read with OpenCV: real files of a few small frames."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from mask2former.tracking import video_files
from mask2former.tracking.video_files import CODECS, FilmReader, FilmWriter, VideoError, is_film

RATE = 10.0


def drawn_frame(number, height=48, width=64):
    """Return a frame with a bright quarter at the top left, and a brightness that tells its number."""
    image = np.full((height, width, 3), (20 * number + 20, 30, 90), np.uint8)
    image[: height // 2, : width // 2] = 250
    return image


def write(path, times, *, rate=RATE, **size):
    with FilmWriter(path, rate) as film:
        for number, time in enumerate(times):
            film.write(drawn_frame(number, **size), time)


def numbers(path):
    """Return the numbers of a film's frames."""
    reader = FilmReader(str(path))
    found = [round((int(frame.image[-8:, -8:, 0].mean()) - 20) / 20) for frame in reader]
    reader.close()
    return found


def even(count):
    return [number / RATE for number in range(count)]


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_frames_come_back_with_their_colors_and_times(tmp_path, suffix):
    path = tmp_path / f"new/film{suffix.upper()}"
    write(path, even(8), height=47, width=63)
    reader = FilmReader(str(path))
    frames = list(reader)
    assert reader.rate == pytest.approx(RATE) and reader.count == len(frames) == 8
    for number, frame in enumerate(frames):
        assert frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8  # codecs need even sides
        assert frame.time == pytest.approx(number / RATE, abs=0.002)
        expected = drawn_frame(number, 47, 63)[40, 50]
        assert np.abs(frame.image[40, 50].astype(int) - expected).max() < 16
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_variable_rate_keeps_the_duration(tmp_path):
    path = tmp_path / "film.avi"
    write(path, [0, 0.1, 0.4, 0.42, 0.44, 0.5])
    # Frame 1 is shown until 0.4; frames 3 and 4 come too soon after it
    assert numbers(path) == [0, 1, 1, 1, 2, 5]


def test_times_that_do_not_advance_are_replaced_by_the_rate(tmp_path, monkeypatch):
    write(tmp_path / "film.avi", even(5))
    monkeypatch.setattr(FilmReader, "_position", lambda reader: 0.0)
    times = [frame.time for frame in FilmReader(str(tmp_path / "film.avi"))]
    assert times == pytest.approx(even(5))


def turn(path, matrix):
    """Write a rotation into the header of the track of an MP4 file."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # the box's name, then version, times, id, duration, layer, ...
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def test_frames_are_turned_upright(tmp_path):
    path = tmp_path / "film.mp4"
    write(path, even(3))
    one, unit = 1 << 16, 1 << 30
    turn(path, (0, one, 0, -one, 0, 0, 48 << 16, 0, unit))  # a quarter turn, clockwise
    frame = next(iter(FilmReader(str(path)))).image
    assert frame.shape == (64, 48, 3)
    assert frame[4, -4].min() > 200 and frame[4, 4].min() < 120  # the bright quarter is at the top right


def test_an_interrupted_film_holds_the_frames_until_then(tmp_path):
    path = tmp_path / "film.mp4"
    with pytest.raises(KeyboardInterrupt), FilmWriter(path, RATE) as film:
        for number in range(4):
            film.write(drawn_frame(number), number / RATE)
        assert not path.exists()
        raise KeyboardInterrupt
    assert numbers(path) == [0, 1, 2, 3]


def test_a_film_without_frames_leaves_what_was_there(tmp_path):
    path = tmp_path / "film.mp4"
    write(path, even(3))
    with pytest.raises(RuntimeError), FilmWriter(path, RATE):
        raise RuntimeError
    assert numbers(path) == [0, 1, 2]
    with FilmWriter(tmp_path / "none.mp4", RATE):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


def test_the_next_codec_is_tried_and_all_are_named_in_the_error(tmp_path, monkeypatch):
    monkeypatch.setitem(CODECS, ".avi", ("none", "MJPG"))
    write(tmp_path / "film.avi", even(2))
    assert numbers(tmp_path / "film.avi") == [0, 1]
    monkeypatch.setitem(CODECS, ".avi", ("none", "nada"))
    with pytest.raises(VideoError, match=r"other\.avi: cannot be written; codecs tried: none, nada$"):
        write(tmp_path / "other.avi", even(2))


def test_a_truncated_film_gives_its_frames_and_then_an_error(tmp_path):
    path = tmp_path / "film.avi"
    with FilmWriter(path, RATE) as film:
        for time in even(20):
            film.write(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), time)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = []
    with pytest.raises(
        VideoError, match=r"film\.avi: is broken or truncated: it ends after \d+ of 20 frames"
    ):
        found.extend(frame.time for frame in FilmReader(str(path)))
    assert 5 <= len(found) <= 12


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such film"), (b"", "is not a film"), (b"\0" * 999, "is not a film that can be read here")],
)
def test_what_is_no_film_is_one_line(tmp_path, capfd, content, message):
    path = tmp_path / "film.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=rf"film\.mp4: {message}"):
        FilmReader(str(path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(Path("/dev/video63").exists(), reason="there is such a camera")
def test_a_missing_webcam_is_one_line(capfd):
    with pytest.raises(VideoError, match="there is no webcam 63 here, or another program uses it"):
        FilmReader(63)
    assert capfd.readouterr() == ("", "")


def test_a_webcam_ends_when_it_gives_no_more(monkeypatch, tmp_path):
    write(tmp_path / "film.avi", even(3))
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda *source: real(str(tmp_path / "film.avi")))
    clock = iter([50.0, 50.2, 50.6])
    monkeypatch.setattr(video_files.time, "monotonic", lambda: next(clock))
    reader, times = FilmReader(0), []
    with pytest.raises(VideoError, match="webcam 0 gives no more images"):
        times.extend(frame.time for frame in reader)
    assert reader.count == 0
    times = []
    clock = iter([50.0, 50.2, 50.6])
    frames = iter(FilmReader(0))
    times = [next(frames).time for _ in range(3)]
    assert times == pytest.approx([0, 0.2, 0.6])


def test_other_suffixes_and_sizes_are_errors(tmp_path):
    with pytest.raises(VideoError, match=r"film\.ogv: films are written as \.mp4, "):
        FilmWriter(tmp_path / "film.ogv", RATE)
    with (
        pytest.raises(VideoError, match="a frame is of 8 x 48 pixels, the first 64 x 48"),
        FilmWriter(tmp_path / "film.avi", RATE) as film,
    ):
        film.write(drawn_frame(0), 0)
        film.write(drawn_frame(1, width=8), 0.1)
    assert numbers(tmp_path / "film.avi") == [0]


def test_films_are_known_by_their_suffix():
    assert is_film("a.MP4") and is_film("folder/b.wmv")
    assert not is_film("a.jpg") and not is_film("mp4") and not is_film("folder")
