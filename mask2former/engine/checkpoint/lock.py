"""A file that one process holds: who writes to a folder has it to itself."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl


def hold(file: Path, what: str) -> IO[str]:
    """Hold `file` until what is returned is closed, or this process ends, however it does.

    Processes that are forked from this one do not hold it: a loader's worker may live on for a while. A file
    system that knows no locks grants them to all, as does Windows.

    Raises:
        OSError: another process holds it; the message says that it works in `what`.
    """
    stream = open(file, "a")  # noqa: SIM115  (open as long as it is held)
    if sys.platform != "win32":
        try:
            with suppress(NotImplementedError):
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            stream.close()
            raise OSError(f"another run is at work in {what}: wait for its end, or choose another") from error
        except OSError:
            pass
    return stream
