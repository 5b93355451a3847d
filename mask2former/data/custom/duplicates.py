"""Images that two datasets share, found by their content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def shared_images(files: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of a file and one of the others with the same content; files that do not exist share nothing."""
    sized = {side: _by_length(paths) for side, paths in (("files", files), ("others", others))}
    pairs = []
    for length in sized["files"].keys() & sized["others"].keys():
        contents = {_digest(path): path for path in sized["others"][length]}
        pairs += [
            (path, contents[digest])
            for path in sized["files"][length]
            if (digest := _digest(path)) in contents
        ]
    return sorted(pairs)


def _by_length(paths: Iterable[str]) -> dict[int, set[str]]:
    """The files of each length in bytes."""
    found = defaultdict(set)
    for path in map(Path, paths):
        if path.is_file():
            found[path.stat().st_size].add(str(path))
    return found


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
