"""A file's bytes in memory without a copy."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt


class MappedFile:
    """Read only. Pages come from the page cache, which other processes share."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be read and ValueError when it is empty."""
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._map)

    def release(self) -> None:
        """Gives the pages read so far back; they are found again in the page cache if they are read again."""
        self._map.madvise(mmap.MADV_DONTNEED)
