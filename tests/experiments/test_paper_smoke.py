"""The published tables in miniature: `make paper-smoke` runs them all, this one of them."""

import pytest

from fedpgp.data import load_dataset
from tests.helpers import paper_smoke
from tests.helpers.public_layouts import CLASSES, IMAGES, ZHOU, public_data


@pytest.mark.slow
def test_a_table_of_the_paper_in_miniature(capsys):
    assert paper_smoke.main(["paper_beta", "--small"]) == 0
    assert "1 cells, 0 failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failure_is_told(capsys, monkeypatch):
    monkeypatch.setattr(paper_smoke, "FEWER", {"paper_beta": ["clients=9999"]})
    assert paper_smoke.main(["paper_beta", "--small"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.slow
def test_every_data_set_is_read_by_its_published_list(tmp_path):
    public_data(tmp_path)
    for name in [*ZHOU, "fgvc_aircraft"]:
        data = load_dataset(name, tmp_path)
        assert len(data.class_names) == CLASSES
        assert len(data.train) == CLASSES * IMAGES["train"] and not any(
            "not there" in note for note in data.notes
        )
    assert len(load_dataset("domainnet10", tmp_path).class_names) == 10
    for name in ("imagenet", "imagenetv2", "imagenet_a", "cifar100", "office_caltech10"):
        assert len(load_dataset(name, tmp_path).test)
