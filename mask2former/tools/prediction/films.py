"""Films in `mask2former predict`: their frames are tracked, drawn, and written as films or folders.

A film, a webcam, and with `--track` the images of a folder are one sequence of frames each.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from mask2former.drawing.overlay import legible_scale
from mask2former.options import COUNTED
from mask2former.predictor import Predictor
from mask2former.result import Result
from mask2former.tools.prediction.inputs import output_paths
from mask2former.tracking.formats import CocoFile, TracksFile
from mask2former.tracking.video_files import CODECS, FilmReader, FilmWriter, Frame, is_film
from mask2former.utils.image_io import Array, read_image, write_image
from mask2former.utils.memory import is_out_of_memory
from mask2former.utils.messages import legible, reason
from mask2former.utils.output import print_error

INTERRUPTED = 130  # exit code


class Film(NamedTuple):
    """Frames to read: of a film by path, of a webcam by number, or images; and the file or files to write."""

    name: str
    source: str | int | list[str]
    output: Path | list[Path]


class Images:
    """Images as the frames of a film."""

    def __init__(self, paths: Sequence[str], rate: float, max_megapixels: float) -> None:
        self.paths, self.rate, self.count = paths, rate, len(paths)
        self.max_megapixels = max_megapixels

    def __iter__(self) -> Iterator[Frame]:
        for number, path in enumerate(self.paths):
            yield Frame(read_image(path, "RGB", self.max_megapixels), number / self.rate)

    def close(self) -> None:
        """Do nothing: each file is closed once it is read."""


class Writer(Protocol):
    """What frames are written to, as a context."""

    def __enter__(self) -> Any: ...
    def write(self, image: Array, time: float) -> None:
        """Add a frame."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Overlays:
    """Frames as images of the given names."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = iter(paths)

    def __enter__(self) -> Writer:
        return self

    def write(self, image: Array, time: float) -> None:
        """Write the next image."""
        write_image(next(self._paths), image)

    def __exit__(self, *error: object) -> None: ...


def find_films(args: argparse.Namespace, images: list[str]) -> list[Film]:
    """Return the films that the flags ask for; none if `images`, the inputs found, are separate images.

    Images are one film if `--track` is given, or `--output` names a film.

    Raises:
        ValueError: flags contradict each other or the inputs.
    """
    films = [image for image in images if is_film(image)]
    one_film = is_film(args.output) and not Path(args.output).is_dir()
    if films and len(films) < len(images):
        raise ValueError(f"--input has films, such as {films[0]}, and images; give them one after the other")
    if not (films or args.track or one_film or args.webcam is not None):
        if args.tracks:
            raise ValueError("--tracks is for films; add --track if the images are frames of one")
        return []
    if args.legend:
        raise ValueError("--legend is for images, not for films")
    if one_film and Path(args.output).suffix.lower() not in CODECS:
        raise ValueError(f"--output {args.output}: films are written as {', '.join(CODECS)}")
    if args.webcam is not None:
        return [Film(f"webcam {args.webcam}", args.webcam, _film_path(args.output, "webcam.mp4"))]
    if not films:
        output = Path(args.output) if one_film else output_paths(images, args.output)
        return [Film(images[0] if len(images) == 1 else f"{len(images)} images", images, output)]
    if one_film and len(films) > 1:
        raise ValueError(f"--output {args.output} is one file for {len(films)} films; give a folder")
    return [Film(film, film, _output_of(film, args.output)) for film in films]


def _output_of(film: str, output: str) -> Path:
    suffix = Path(film).suffix
    path = _film_path(output, Path(film).stem + (suffix if suffix.lower() in CODECS else ".mp4"))
    if path.resolve() == Path(film).resolve():
        raise ValueError(f"the drawn film {path} would overwrite the film itself; give another --output")
    return path


def _film_path(output: str, name: str) -> Path:
    path = Path(output)
    return path if is_film(path) and not path.is_dir() else path / name


def drawn_task(args: argparse.Namespace, predictor: Predictor) -> str:
    """Return the task that is drawn, the only one that the model is set to."""
    return args.task or next(task for task in COUNTED if task in predictor.model.tasks)


def require_objects(args: argparse.Namespace, predictor: Predictor) -> None:
    """Raise ValueError if files of objects are asked for, but results are semantic."""
    asked = [flag for flag, path in (("--coco", args.coco), ("--tracks", args.tracks)) if path]
    if asked and drawn_task(args, predictor) == "semantic":
        raise ValueError(f"{asked[0]}: semantic results have no objects; type --task panoptic or instance")


def predict_films(predictor: Predictor, films: Sequence[Film], args: argparse.Namespace) -> int:
    """Track and draw all films, report each; return 0, 1 after errors, or 130 after an interrupt."""
    task = drawn_task(args, predictor)
    failed = 0
    with ExitStack() as stack:
        stack.enter_context(_interrupt_by_sigterm())
        coco = stack.enter_context(CocoFile(args.coco, task, rle=True)) if args.coco else None
        tracks = stack.enter_context(TracksFile(args.tracks, task)) if args.tracks else None
        for film in films:
            run = _Run(predictor, film, args, coco, tracks)
            try:
                run.predict()
            except KeyboardInterrupt:
                print(run.report(), flush=True)
                if args.webcam is not None:
                    return 0
                print_error(f"{film.name}: interrupted after {run.frames} frames")
                return INTERRUPTED
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                why = "not enough memory; try a smaller INPUT.MIN_SIZE_TEST"
                if not is_out_of_memory(error):
                    why = reason(error, film.name)
                failed += 1
                print(f"error: {legible(film.name)}: {why}", file=sys.stderr)
            if run.frames:
                print(run.report(), flush=True)
    return 1 if failed else 0


class _Run:
    """A film that is read, tracked, drawn and written."""

    def __init__(
        self,
        predictor: Predictor,
        film: Film,
        args: argparse.Namespace,
        coco: CocoFile | None,
        tracks: TracksFile | None,
    ) -> None:
        self.predictor, self.film, self.args = predictor, film, args
        self.coco, self.tracks = coco, tracks
        self.task = drawn_task(args, predictor)
        self.frames = 0
        self.ids: set[int] = set()

    def report(self) -> str:
        """Return how many frames were written where, and how many objects were followed."""
        output = self.film.output
        where = output if isinstance(output, Path) else output[0].parent
        objects = "" if self.task == "semantic" else f", {len(self.ids)} objects"
        return f"{legible(self.film.name)}: {self.frames} frames{objects} -> {legible(where)}"

    def predict(self) -> None:
        """Do all frames; what was written stays after errors."""
        if self.tracks:
            self.tracks.begin()
        source = self.film.source
        limit = self.predictor.cfg.INPUT.MAX_MEGAPIXELS
        reader = Images(source, self.args.fps, limit) if isinstance(source, list) else FilmReader(source)
        try:
            with self._writer(reader.rate) as writer:
                self._predict(reader, writer)
        finally:
            reader.close()

    def _writer(self, rate: float) -> Writer:
        output = self.film.output
        return FilmWriter(output, rate) if isinstance(output, Path) else Overlays(output)

    def _predict(self, reader: FilmReader | Images, writer: Writer) -> None:
        times: list[float] = []

        def images() -> Iterator[Array]:
            for frame in reader:
                times.append(frame.time)
                yield frame.image

        progress = tqdm(total=reader.count or None, unit="frame", desc=legible(self.film.name, 30))
        with progress:
            for result in self.predictor.track(images(), max_absent=self.args.max_absent):
                writer.write(result.draw(self.task, scale=legible_scale(result.image)), times.pop())
                self._save(result)
                self.frames += 1
                progress.update()

    def _save(self, result: Result) -> None:
        self.ids.update(number for number in result.track_ids.get(self.task, ()) if number is not None)
        if self.coco:
            source, number = self.film.source, self.frames
            name = source[number] if isinstance(source, list) else f"{self.film.name}/{number:06d}.jpg"
            self.coco.add(name, result, frame_id=number)
        if self.tracks:
            self.tracks.add(result)


@contextmanager
def _interrupt_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that files are completed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
