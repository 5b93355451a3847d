"""PNG files that promise more pixels than they hold."""

import struct
import zlib
from pathlib import Path

from PIL import Image


def save_huge_png(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    """Save a PNG of one pixel whose header promises `width` x `height`."""
    Image.new(mode, (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    content[12:33] = header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(content)
    return path
