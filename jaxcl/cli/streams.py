"""Standard output and error that cannot take what is written: full devices, broken pipes."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Names standard output where it cannot take what is shown."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def flush() -> None:
    """Writes out what is buffered, so that a failure is told here and not by Python at its end.

    Raises:
        OSError: if standard output cannot take it, which then takes nothing any more.
    """
    try:
        with standard_output():
            sys.stdout.flush()
    except OSError:
        # The buffer stays full, and Python would try again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


class Lossy:
    """A stream that loses what it cannot take: training is not given up for its progress."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self):
        with contextlib.suppress(OSError):
            self._stream.flush()
