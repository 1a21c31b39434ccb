"""FedOTP: loss and gradients against its equations, written out."""

import pytest

from tests.helpers.equations import (
    prompted,
    transported,
)
from tests.helpers.gradients import check_gradients


def fedotp(task, s, batch, k, p, global_params):
    texts = [prompted(task, p["p_G"]), prompted(task, p["p"])]
    return transported(task, k, batch, texts, s, s.transport == "unbalanced")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mass": 0.5, "epsilon": 0.02, "iterations": 7},
        {"transport": "balanced", "threshold": 1e-06},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedotp", options, fedotp, task, batch)
