"""What stops an emulated kernel: each error names the line of the assembly text."""

from __future__ import annotations


class EmulationError(Exception):
    """line: of the assembly text, counted from 1; text: that line."""

    def __init__(self, what: str, line: int = 0, text: str = "") -> None:
        super().__init__(f"line {line}: {text.strip()}: {what}" if line else what)
        self.what = what
        self.line = line
        self.text = text


class UnknownInstructionError(EmulationError):
    """A mnemonic, operand or modifier without a row: nothing is guessed."""


class UndefinedReadError(EmulationError):
    """A register is read in a lane where nothing wrote it."""


class PendingReadError(EmulationError):
    """A register is touched while an access to memory that no s_waitcnt waited for owns it."""


class OutOfBoundsError(EmulationError):
    """An address outside every allocation, or outside the workgroup's LDS."""


class LdsRaceError(EmulationError):
    """Two waves touch a byte of LDS, one of them writing, with no barrier between them."""


class LaunchError(EmulationError):
    """Arguments, grid or descriptor that do not fit the kernel."""
