"""What a node tells of exceptions fits into its account, however much they say."""

import json

from clients.failures import MOST_REASONS, Failures, describe
from strategies.reply_checks import ACCOUNT_BYTES


def raised(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_an_exception_with_a_whole_tensor_in_it_is_cut_and_keeps_its_line():
    reason = describe(raised("bad tensor\n" + "0.125, " * 50_000))
    assert reason.startswith("ValueError: bad tensor 0.125, ")
    assert reason.endswith("… (tests/clients/test_failures.py:11)") and len(reason.encode()) < 1000


def test_many_long_exceptions_fit_into_an_account():
    """Longer than the server reads, it would cost the whole node's replies, and the
    exceptions would not be told."""
    failures = Failures()
    for client in range(MOST_REASONS + 10):
        failures.add(raised(f"client {client} " + "x" * 100_000), 1)
    account = failures.account()
    assert len(account) == MOST_REASONS and len(json.dumps(account)) < ACCOUNT_BYTES
