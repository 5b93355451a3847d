"""Films read and written by OpenCV, frame by frame.

A frame has the time at which it is shown. Files are written with one constant rate: frames are repeated or
left out where the times of the input ask for it, so that a film of variable rate keeps its duration.

Shapes: `H, W` the sides of a frame in pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import cv2
import numpy as np

from mask2former.options import USUAL_RATE
from mask2former.utils.atomic_files import UNFINISHED
from mask2former.utils.label_maps import Array
from mask2former.utils.messages import InputError

# Suffix of films that can be written -> codecs, of which the first that works here is taken
CODECS = {
    ".mp4": ("mp4v", "avc1", "MJPG"),
    ".m4v": ("mp4v", "avc1"),
    ".mov": ("mp4v", "avc1", "MJPG"),
    ".avi": ("MJPG", "XVID", "mp4v"),
    ".mkv": ("mp4v", "avc1", "MJPG"),
    ".webm": ("VP90", "VP80"),
}
READABLE = (*CODECS, ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".m2ts", ".3gp", ".ogv")
COMPLETE = 0.98  # share of its stated frames or duration; both are estimates in some formats


class VideoError(InputError):
    """A film or a camera that cannot be read, or a film that cannot be written."""


class Frame(NamedTuple):
    """An image (H, W, 3) uint8 RGB, and its time in seconds from the beginning."""

    image: Array
    time: float


def is_film(path: str | Path) -> bool:
    """Return True if a name has the suffix of a film."""
    return Path(path).suffix.lower() in READABLE


class FilmReader:
    """The frames of a film, or of a camera, which ends by an interrupt alone.

    Frames are turned upright as the film's rotation flag says.

    Args:
        source: the path of a film, or the number of a camera.

    Attributes:
        rate: frames per second, of a film of variable rate an average.
        count: the frames that the file states; 0 if it is unknown.

    Raises:
        VideoError: it cannot be opened.
    """

    def __init__(self, source: str | int) -> None:
        _silence_opencv()
        self.source = source
        self.is_camera = isinstance(source, int)
        if isinstance(source, str) and not Path(source).is_file():
            raise VideoError(f"{source}: no such film")
        self._capture = cv2.VideoCapture(source, cv2.CAP_ANY if self.is_camera else cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            if self.is_camera:
                raise VideoError(f"there is no webcam {source} here, or another program uses it")
            raise VideoError(f"{source}: is not a film that can be read here, or is broken")
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else USUAL_RATE
        self.count = 0 if self.is_camera else max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames.

        Raises:
            VideoError: the film ends before its end, or the camera stops.
        """
        begin, latest, number = 0.0, -1.0, 0
        while True:
            there, image = self._capture.read()
            if not there:
                break
            position = self._position()
            begin = position if number == 0 else begin
            advanced = position - begin > latest
            latest = position - begin if advanced else latest + 1 / self.rate
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), latest)
            number += 1
        self._require_complete(number, latest)

    def _position(self) -> float:
        """Return the time in seconds of the frame that was read last."""
        return time.monotonic() if self.is_camera else self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000

    def _require_complete(self, number: int, latest: float) -> None:
        if self.is_camera:
            raise VideoError(f"webcam {self.source} gives no more images")
        if not number:
            raise VideoError(f"{self.source}: holds no frame that can be read")
        enough = COMPLETE * self.count - 1
        if number < enough and latest * self.rate < enough - 1:
            raise VideoError(
                f"{self.source}: is broken or truncated: it ends after {number} of {self.count} frames"
            )

    def close(self) -> None:
        """Release the file or camera."""
        self._capture.release()


class FilmWriter:
    """A film that is written frame by frame, as a context.

    It appears at its path when the context ends, however that ends, so that an interrupted run leaves a film
    of the frames until then. Without any frame, a file that was there before stays.

    Args:
        path: its suffix is one of `CODECS`.
        rate: frames per second.

    Raises:
        VideoError: the suffix is another one.
    """

    def __init__(self, path: Path, rate: float) -> None:
        if path.suffix.lower() not in CODECS:
            raise VideoError(f"{path}: films are written as {', '.join(CODECS)}")
        self.path, self.rate = path, rate
        self.written = 0
        self._unfinished = path.with_name(f"{UNFINISHED}-{path.name}")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._latest: Array | None = None

    def __enter__(self) -> FilmWriter:
        return self

    def write(self, image: Array, time: float) -> None:
        """Add an image (H, W, 3) uint8 RGB that is shown from `time` on, in seconds.

        The image before is shown until then. One that would be shown for less than half a frame is left out.

        Raises:
            VideoError: no codec works, or the image has another size than the first.
        """
        writer = self._writer or self._open(image)
        if image.shape[:2] != self._size:
            (height, width), (new_height, new_width) = self._size, image.shape[:2]
            raise VideoError(
                f"{self.path}: a frame is of {new_width} x {new_height} pixels, the first {width} x {height}"
            )
        place = round(time * self.rate)
        while self._latest is not None and self.written < place:
            writer.write(self._latest)
            self.written += 1
        if self.written <= place:
            self._latest = cv2.cvtColor(_even(image), cv2.COLOR_RGB2BGR)
            writer.write(self._latest)
            self.written += 1

    def _open(self, image: Array) -> cv2.VideoWriter:
        """Open the file for images of this size with the first codec that works."""
        _silence_opencv()
        self._size = (image.shape[0], image.shape[1])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        height, width = _even(image).shape[:2]
        codecs = CODECS[self.path.suffix.lower()]
        for codec in codecs:
            code = cv2.VideoWriter.fourcc(*codec)
            writer = cv2.VideoWriter(str(self._unfinished), code, self.rate, (width, height))
            if writer.isOpened():
                self._writer = writer
                return writer
        raise VideoError(f"{self.path}: cannot be written; codecs tried: {', '.join(codecs)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        if not self.written:
            self._unfinished.unlink(missing_ok=True)
            return
        if not _is_playable(self._unfinished):
            self._unfinished.unlink(missing_ok=True)
            raise VideoError(f"{self.path}: could not be written; is the disk full?") from error
        os.replace(self._unfinished, self.path)


def _even(image: Array) -> Array:
    """Return the image with even sides, as codecs need; the last row or column is repeated."""
    odd = [(0, side % 2) for side in image.shape[:2]]
    return np.pad(image, [*odd, (0, 0)], mode="edge") if any(end for _, end in odd) else image


def _is_playable(path: Path) -> bool:
    capture = cv2.VideoCapture(str(path))
    there, _ = capture.read()
    capture.release()
    return there


def _silence_opencv() -> None:
    """Keep OpenCV and its FFmpeg from printing errors, which are raised here in one line."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    logging = cv2.utils.logging
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
