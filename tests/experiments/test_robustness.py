"""What docs/robustness.md says of ``experiment=robustness``, with seed 0."""

import pytest

from experiments.runner import start
from experiments.settings import composed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("strategy", "attack", "least", "most"),
    [
        ("fedavg", (), 65, 67.5),
        ("fedmedian", (), 62.5, 65),
        ("fedavg", ("attack=sign_flip", "attack.share=0.1"), 40, 58),
        ("fedavg", ("attack=sign_flip", "attack.share=0.3"), 5, 35),
        ("fedmedian", ("attack=sign_flip", "attack.share=0.3"), 61, 70),
        ("fedavg", ("attack=label_flip", "attack.share=0.3"), 50, 60),
        ("text_filter", ("attack=sign_flip", "attack.share=0.3"), 60, 70),
    ],
)
def test_who_holds(tmp_path, strategy, attack, least, most):
    words = ["method=promptfl", "recipe=robustness", "runtime=inline", "evaluate_every=0", *attack]
    words += [
        f"strategy={strategy}",
        "strategy.max_update_norm=null",
        f"run_dir={tmp_path / 'run'}",
    ]
    local = start(composed(words))["accuracy"]["global"]["local"]
    assert least < local < most
