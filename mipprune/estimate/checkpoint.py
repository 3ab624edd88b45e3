"""A long estimation's state on disk: what was gathered so far, and of which game and settings."""

from __future__ import annotations

import io
import json
import os
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..records import write_bytes_atomic

__all__ = ["Checkpoint"]

#: Seconds between two writes of a running estimation.
SAVE_SECONDS = 10.0

#: The game's ends may differ from the saved ones by this much, relatively: what another thread count changes.
GAME_TOLERANCE = 1e-5


class Checkpoint:
    """A file that an estimation goes on from, and saves itself to.

    Replicates are functions of the seed and their number, so a resumed run ends in the very bits of an undisturbed one
    (on the same machine; the network's own rounding may differ on another).  The file is an ``.npz`` archive without
    pickled objects, replaced atomically.

    Args:
        path: the file; need not exist.
        settings: what the state depends on besides the game; must be equal when resuming.
        ends: values of the full and the empty coalition, which identify the game together with the settings.
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: dict[str, Any], ends: tuple[float | None, float | None]
    ) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))  # as they will be read back
        self.ends = np.array([np.nan if end is None else end for end in ends])
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, np.ndarray] | None:
        """The saved state, or ``None`` if there is no file yet.

        Raises:
            DataError: the file is no checkpoint, or of another game or other settings; it is left alone.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = dict(archive)
            settings, ends = json.loads(str(arrays.pop("settings"))), arrays.pop("ends")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path}: not a checkpoint of an estimation ({error})") from None
        for name in sorted(self.settings.keys() | settings.keys()):
            now, then = self.settings.get(name), settings.get(name)
            if now != then:
                raise DataError(
                    f"{self.path}: saved with {name}={_short(then)}, but this run has {name}={_short(now)}; "
                    "resume with equal settings, or name another file"
                )
        if not np.allclose(ends, self.ends, rtol=GAME_TOLERANCE, atol=1e-9, equal_nan=True):
            raise DataError(
                f"{self.path}: saved for a game with values {ends.tolist()} of all and of no players, this one has "
                f"{self.ends.tolist()}; resume with the same network and data, or name another file"
            )
        return arrays

    def save(self, arrays: dict[str, np.ndarray], *, now: bool = True) -> None:
        """Write the state; with ``now=False`` only if the last write was :data:`SAVE_SECONDS` ago.

        A file that can't be written is a warning: what was estimated is worth more than its copy.
        """
        if not now and time.monotonic() - self._saved_at < SAVE_SECONDS:
            return
        stream = io.BytesIO()
        np.savez(stream, settings=np.array(json.dumps(self.settings)), ends=self.ends, **arrays)  # type: ignore[arg-type]
        try:
            write_bytes_atomic(self.path, stream.getvalue())
        except OSError as error:
            warnings.warn(f"{self.path}: the checkpoint can't be written ({error}); going on without", stacklevel=2)
        self._saved_at = time.monotonic()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
