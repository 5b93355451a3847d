"""Images that two datasets share, found by their content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def shared_images(files: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of a file and one of the others with the same content; ignore files that do not exist."""
    by_length, others_by_length = _by_length(files), _by_length(others)
    pairs = []
    for length in by_length.keys() & others_by_length.keys():
        contents = {_digest(path): path for path in others_by_length[length]}
        for path in by_length[length]:
            if other := contents.get(_digest(path)):
                pairs.append((path, other))
    return sorted(pairs)


def _by_length(paths: Iterable[str]) -> dict[int, set[str]]:
    found = defaultdict(set)
    for path in map(Path, paths):
        if path.is_file():
            found[path.stat().st_size].add(str(path))
    return found


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
