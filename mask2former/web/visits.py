"""What happens when a visitor of the page does something; this knows nothing of how the page is made."""

import base64
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from mask2former.result import Thresholds
from mask2former.utils.image_io import read_image
from mask2former.utils.memory import is_out_of_memory
from mask2former.utils.messages import reason
from mask2former.web.downloads import download
from mask2former.web.session import Model, Session, Sessions
from mask2former.web.view import Json, view

GONE = "this image is no longer kept here; drop it again"
Progress = Callable[[float, str], None]  # share done, and what is done next


class Visits:
    """All visitors of the page, by the key of each one's open page.

    The answers are values of the page's viewer: a view, or an error of one line.
    """

    def __init__(self, predictor: Model, examples: Sequence[Path] = ()) -> None:
        self.predictor, self.examples = predictor, examples
        self.sessions = Sessions()

    def open_image(
        self, key: str | None, path: Path, name: str, thresholds: Thresholds, progress: Progress
    ) -> Json:
        """Segment an image of a file, which is called `name`, and show it in place of an earlier one."""
        try:
            progress(0.1, "reading the image")
            image = read_image(path, max_megapixels=self.predictor.cfg.INPUT.MAX_MEGAPIXELS)
            progress(0.2, "running the network")
            session = Session(self.predictor, image, name, thresholds)
            self.sessions.put(key, session)
            progress(0.8, "drawing")
            return view(session, key)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return {"error": f"{name}: is too large for the memory of this machine"}
            if isinstance(error, RuntimeError):
                raise
            return {"error": f"{name}: {reason(error, path)}"}

    def redraw(self, key: str | None, thresholds: Thresholds) -> Json:
        """Show the image at other thresholds."""
        session = self.sessions.get(key)
        if session is None:
            return {"error": GONE}
        session.apply(thresholds)
        return view(session, key)

    def hide(self, key: str | None, classes: Collection[int]) -> Json:
        """Show the image without some classes."""
        session = self.sessions.get(key)
        if session is None:
            return {"error": GONE}
        session.hidden = frozenset(classes)
        return view(session, key)

    def file(self, wanted: dict[str, Any]) -> Json:
        """Return the name and content (base64) of the file `{"session", "task", "kind"}`, or an error."""
        session = self.sessions.get(wanted.get("session"))
        if session is None:
            return {"error": GONE}
        file = download(session, wanted.get("task", ""), wanted.get("kind", ""))
        return {"name": file.name, "content": base64.b64encode(file.content).decode()}
