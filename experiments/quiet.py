"""What the libraries say of themselves, and how it is silenced."""

import logging
import os
import warnings


def quiet(verbose: bool) -> None:
    """Silence the libraries' own chatter (banners, deprecation notices, tracebacks of errors
    that are reported anyway).
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logger = logging.getLogger("flwr")
    if verbose:
        logger.setLevel(logging.DEBUG)
        return
    logger.setLevel(logging.CRITICAL + 1)
    # What the raylet prints of a worker that died, whatever log_to_driver says; the run says it.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
