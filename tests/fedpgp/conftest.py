import pytest
import torch

from fedpgp.task import Task
from tests.helpers.golden import golden_class_names, golden_clip


@pytest.fixture
def task() -> Task:
    """The golden model's task: five classes, three context tokens, float64."""
    return Task(golden_clip(), golden_class_names(), n_ctx=3, dtype=torch.float64)
