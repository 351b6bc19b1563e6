"""What Ctrl-C (SIGINT) and a system that takes the machine back (SIGTERM) do to the command.

While it loads, it leaves at once. While it prepares, an exception ends it. While it trains, it
saves first, and a second signal makes it leave at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

STOPPED = "stopped before anything was trained."


class Interrupted(KeyboardInterrupt):
    """A signal while the command prepares."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.code = code_of(number)


def code_of(number: int) -> int:
    """The exit code of a process that a signal ends, as shells count it."""
    return 128 + number


def leave(number: int, frame: object = None) -> NoReturn:
    """Ends the process, whatever it does."""
    _say(STOPPED)
    os._exit(code_of(number))


def interrupt(number: int, frame: object = None) -> NoReturn:
    """Raises an exception."""
    raise Interrupted(number)


class Noted:
    """Remembers the first signal; the second ends the process."""

    def __init__(self):
        self.number = 0

    def handle(self, number: int, frame: object = None) -> None:
        if self.number:
            _say("stopped at once; what was saved before is kept.")
            os._exit(code_of(number))
        self.number = number
        _say("it stops as soon as all is saved; a second signal stops it at once.")

    def asked(self) -> bool:
        """Whether there was one."""
        return self.number != 0


@contextlib.contextmanager
def handled(handler: Callable) -> Iterator[None]:
    """Both signals go to a handler, where Python takes them and nobody has them ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _say(words: str) -> None:
    """Past Python's streams, which the signal may have interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, f"jaxcl: {words}\n".encode())
