"""How long a file may get before its jobs go to files of their own."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {
    "fedpgp/federation.py": 150,
    "strategies/server.py": 250,
    "experiments/runner.py": 180,
    "README.md": 120,
}
MOST = 400


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", LIMITS)
def test_a_file_that_everything_goes_through_stays_short(name):
    assert lines(ROOT / name) <= LIMITS[name]


def test_no_file_of_the_product_has_too_many_jobs():
    folders = ("fedpgp", "strategies", "clients", "experiments")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    assert not {str(path.relative_to(ROOT)) for path in files if lines(path) > MOST}
