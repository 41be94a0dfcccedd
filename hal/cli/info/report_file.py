"""A report that is either written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from hal.errors import ConfigError
from hal.report import JsonValue


class ReportFile:
    """Opened before the work, so that an unwritable place is refused before hours are spent; what
    is interrupted leaves no file, and an older one as it was.

    Raises ConfigError where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._target = path.resolve()  # a link stays a link
        if path.is_dir():
            raise ConfigError(f"--report {path} is a folder; name a file in it")
        # A device such as /dev/stdout cannot be replaced, only written to.
        self._is_special = path.exists() and not path.is_file()
        if path.exists() and not os.access(path, os.W_OK):
            raise ConfigError(f"--report {path} cannot be written: permission denied")
        self._draft = None if self._is_special else self._make_draft()

    def write(self, data: Mapping[str, JsonValue]) -> None:
        """The whole report; once."""
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        try:
            if self._draft is None:
                self.path.write_text(text, encoding="utf-8")
                return
            self._draft.write_text(text, encoding="utf-8")
            self._draft.replace(self._target)
        except OSError as error:
            raise self._refused(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._draft is not None:
            self._draft.unlink(missing_ok=True)

    def _make_draft(self) -> Path:
        try:
            # With the mode of an ordinary new file, not that of a secret.
            handle, name = tempfile.mkstemp(
                dir=self._target.parent, prefix=f".{self._target.name}."
            )
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(handle, 0o666 & ~mask)
            os.close(handle)
        except OSError as error:
            raise self._refused(error) from error
        return Path(name)

    def _refused(self, error: OSError) -> ConfigError:
        return ConfigError(f"--report {self.path} cannot be written: {error.strerror or error}")
