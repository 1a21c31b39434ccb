"""What all commands have in common: how their process is set up, and how bad input ends them."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps

from fedpgp.errors import FedPGPError
from fedpgp.plain_text import indented
from fedpgp.process import set_up_process

BAD_INPUT = 2
"""Exit status when a person has to mend something."""

Main = Callable[[Sequence[str] | None], int]


def command(main: Main) -> Main:
    """Set up the process before a command, and end it in one line where its input is bad.

    Args:
        main: gets the command line's arguments (None: those of this process) and
            returns the exit status.

    Returns:
        the same, which returns :data:`BAD_INPUT` for a FedPGPError.
    """

    @wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        set_up_process()
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when flwr is imported
        try:
            return main(arguments)
        except FedPGPError as error:
            return complain(error)

    return run


def complain(error: FedPGPError | str) -> int:
    """Say on standard error what a person has to mend, and return the exit status for it."""
    sys.stdout.flush()
    print(f"error: {indented(error)}", file=sys.stderr)
    return BAD_INPUT
