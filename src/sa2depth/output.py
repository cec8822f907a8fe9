"""Output that survives a reader that goes away (``| head``) and letters that it cannot show."""

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def patient_output() -> Iterator[None]:
    """In this context writing to standard output never raises, and logging prints no tracebacks of its own."""
    before, raising = sys.stdout, logging.raiseExceptions
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # LANG=C, or a Latin-1 terminal
    if before is not None:  # None: it was closed by `>&-`
        sys.stdout = PatientStream(before)
    logging.raiseExceptions = False
    try:
        yield
    finally:
        sys.stdout, logging.raiseExceptions = before, raising


@contextmanager
def quiet_pipes() -> Iterator[None]:
    """In this context a reader that goes away (``| head``) is not an error: the command finishes its work.

    This is for commands whose output is their result. A full disk still raises.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and PatientStream(stream, pipes_only=True) for stream in before)
    try:
        yield
    finally:
        written = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for stream in written:
            if stream is not None:
                stream.flush()  # else Python flushes when it exits, where nothing can be caught


class PatientStream:
    """A stream that falls silent, with one line on standard error, once nobody can read it any more.

    Args:
        stream: the stream that it writes to.
        pipes_only: fall silent without the line, and only for a reader that went away; other errors are raised.
    """

    def __init__(self, stream: TextIO, *, pipes_only: bool = False) -> None:
        self._stream = stream
        self._pipes_only = pipes_only

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write like any stream."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fall_silent(error)
            return len(text)

    def flush(self) -> None:
        """Flush like any stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._fall_silent(error)

    def _fall_silent(self, error: OSError) -> None:
        with suppress(OSError, ValueError):  # the rest of its buffer goes there, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if self._pipes_only:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # Windows reports EINVAL
                raise error
            return
        with suppress(OSError):
            said = f"standard output is closed ({error.strerror}); the run continues, and its log is in its folder"
            sys.stderr.write(f"note: {said}\n")
