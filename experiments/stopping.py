"""How a person stops a run: Ctrl-C and SIGTERM."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from experiments.runtimes.ray_session import end_sessions
from strategies.exchange import Interrupted


class Stopped(Exception):
    """The person asked to stop; the run is saved. ``code`` is the exit status (130 for
    Ctrl-C, 143 for SIGTERM)."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Stopper:
    """Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process at once.

    Attributes:
        event: set by the first signal.
        code: exit status, 128 + the signal.
        breaks_in: True while the signal may interrupt what the main thread does (client
            code in the inline runtime).
    """

    def __init__(self):
        self.event, self.code = threading.Event(), 0
        self.breaks_in: Callable[[], bool] = lambda: False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block (in the main thread; elsewhere signals
        are somebody else's)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Take both signals, from whoever had them."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self.event.is_set():
            end_sessions()
            os._exit(128 + number)
        self.code = 128 + number
        self.event.set()
        # Not through the console: the signal may have come while it was writing.
        os.write(2, b"\nstopping; what is done is saved (once more ends at once)\n")
        if self.breaks_in():
            raise Interrupted
