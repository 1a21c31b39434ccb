import pytest

from fedpgp.methods import Batch
from tests.helpers.gradients import made_batch


@pytest.fixture
def batch() -> Batch:
    """Three clients' images, one a shorter batch."""
    return made_batch()
