"""Every error that Rewind raises, as one tree, grouped by what the caller does next.

    RewindError
    |-- UsageError                 the request was wrong: correct it and call again
    |   |-- ProgramError           the program cannot be found, or never trains
    |   |-- StepError              no such step (or state) in this trace
    |   `-- NameUnknownError       no such tensor, capture, column or hyperparameter
    |-- TraceError                 the trace on disk cannot be used as it is
    |   |-- NotATraceError         a foreign, empty or truncated directory
    |   |-- FormatVersionError     written by a newer Rewind
    |   |-- DamageError            a checksum failed: which steps of which array
    |   `-- MissingDataError       the trace never stored this (say how it can be got)
    |-- WriteError                 the trace could not be written (disk, permissions)
    |-- ControlError               a live run cannot be reached: it is over, gone, elsewhere, or does not answer
    `-- ReplayError                the program could not be re-executed
        |-- EnvironmentMismatchError   this machine or its versions differ from the recorded ones
        |-- ProgramFailedError         the program itself raised while being re-executed
        `-- UnreachableStepError       the program never came to the place of this step again

An error says what is wrong, where, and what to do, in one line; it carries `step`, `tensor` and `path` where they are known.
Room: tracer. Imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class RewindError(Exception):
    """Root of all errors of Rewind; `step`, `tensor` and `path` are None where they do not apply."""

    def __init__(
        self,
        message: str,
        *,
        step: int | None = None,
        tensor: str | None = None,
        path: str | Path | None = None,
    ) -> None:
        super().__init__(message)
        self.step = step
        self.tensor = tensor
        self.path = path


class UsageError(RewindError):
    """The request was wrong."""


class ProgramError(UsageError):
    """The program cannot be found or started, or it never trains."""


class StepError(UsageError):
    """There is no such step or state in the trace."""


class NameUnknownError(UsageError):
    """There is no tensor, capture, column or hyperparameter of that name."""


class TraceError(RewindError):
    """The trace on disk cannot be used as it is."""


class NotATraceError(TraceError):
    """The path holds no trace."""


class FormatVersionError(TraceError):
    """The trace was written by a newer version of Rewind."""


class DamageError(TraceError):
    """A checksum failed: the bytes are not those that were written."""


class MissingDataError(TraceError):
    """The trace never stored what was asked for."""


class WriteError(RewindError):
    """The trace could not be written."""


class ControlError(RewindError):
    """A live run cannot be reached: it is over, gone, on another machine, or does not answer."""


class ReplayError(RewindError):
    """The program could not be re-executed."""


class EnvironmentMismatchError(ReplayError):
    """This machine, its versions or flags differ from the recorded ones."""


class ProgramFailedError(ReplayError):
    """The program itself raised while it was being re-executed."""


class UnreachableStepError(ReplayError):
    """The program never came to the place where this step was recorded."""
