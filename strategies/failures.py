"""What the server says of exceptions in the code of a method: each once a round, never
swallowed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from fedpgp.errors import FedPGPError, RepeatingError

NOT_FINITE = "NaN or Inf"
"""Stands in every message about a loss, an update or a private tensor that is not finite."""

FIRST_STEP = "is NaN or Inf at round 1, step 1"
"""Ends the message about a loss or an update that was not finite before anything was learned."""
NEW_RUN = "a resume would meet the same numbers: start a new run"


class Redraw(FedPGPError):
    """Too few clients of a round answered, and some of them will train no more: it is drawn anew
    among the others."""


class Listener(Protocol):
    """Who is told: a warning for the terminal, a traceback for the run folder."""

    def warn(self, text: str) -> None: ...
    def traceback(self, text: str) -> None: ...


def tell(what: str, accounts: Iterable[Mapping], listener: Listener, *, debug: bool) -> set[str]:
    """Report the exceptions of an exchange, each once.

    Args:
        what: of which exchange, "round 3".
        accounts: the nodes' accounts; ``failures`` of each are ``clients, reason, traceback``.
        listener: is told.
        debug: stop at the first (``runtime.debug``).

    Returns:
        the reasons.

    Raises:
        RepeatingError: with the traceback, when ``debug`` is set and there is one.
    """
    found: dict[str, dict] = {}
    for failure in (failure for account in accounts for failure in account.get("failures", ())):
        known = found.setdefault(failure["reason"], dict(failure))
        known["clients"] = max(known["clients"], failure["clients"])
    for reason, failure in found.items():
        listener.traceback(f"{what}: {reason}\n{failure['traceback']}")
        if debug:
            raise RepeatingError(
                f"{what}: {reason}\n{failure['traceback']}(stopped by runtime.debug=true)",
                "mend the code first, or add runtime.debug=false (clients that failed together are "
                "tried one by one), then",
            )
        if failure["clients"] > 1:
            listener.warn(
                f"{what}: {failure['clients']} clients together failed ({reason}); tried one by "
                "one. The traceback is in errors.log; runtime.debug=true stops at it"
            )
    return set(found)


def lost_round(text: str, failed: Mapping[int, str], exceptions: set[str]) -> FedPGPError:
    """Return the error of a round that too few clients answered, with advice that helps.

    Args:
        text: what happened.
        failed: client -> why it is left out.
        exceptions: the reasons that are exceptions of code.
    """
    reasons: Sequence[str] = list(failed.values())
    of_code = [reason in exceptions for reason in reasons]
    if not all(code or NOT_FINITE in r for code, r in zip(of_code, reasons, strict=True)):
        return FedPGPError(text)
    if any(of_code):
        return RepeatingError(text, "the traceback is in errors.log: mend the code first, then")
    return RepeatingError(text, _of_numbers(reasons), False) if reasons else FedPGPError(text)


def _of_numbers(reasons: Sequence[str]) -> str:
    """Return what helps against numbers that are not finite, as far as it is known."""
    if all(reason.endswith(f"loss {FIRST_STEP}") for reason in reasons):
        return (
            f"{NEW_RUN} when the cause is found. The loss was NaN or Inf before anything was "
            "learned, so lr has no part in it: look at the method's loss and its settings, at "
            "dtype, at the model's weights, and at the starting prompts (context_init, init_from)"
        )
    if all(reason.endswith(FIRST_STEP) for reason in reasons):
        return (
            f"{NEW_RUN} when the cause is found. The first step from a finite loss gave NaN or "
            "Inf: unless lr is huge, the gradient itself is (a root or a norm of zero in the "
            "method's loss)"
        )
    return f"{NEW_RUN} with a smaller lr"
