import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def small_heap():
    """Flower's Bulyan collects garbage for every tensor: slow beside the heap of a whole
    session, quick without."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
