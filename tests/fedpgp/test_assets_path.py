import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedpgp
from fedpgp.assets_path import asset
from fedpgp.errors import FedPGPError

PACKAGE = Path(fedpgp.__file__).resolve().parent


def test_beside_the_code_and_by_the_variable(tmp_path, monkeypatch):
    assert asset("emoji", "classes.csv") == PACKAGE / "assets" / "emoji" / "classes.csv"
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "classes.csv").touch()
    monkeypatch.setenv("FEDPGP_ASSETS", str(tmp_path))
    assert asset("emoji", "classes.csv") == tmp_path / "emoji" / "classes.csv"
    assert asset("emoji", "emoji.csv") == PACKAGE / "assets" / "emoji" / "emoji.csv", (
        "what it lacks is looked for on"
    )


def test_what_is_nowhere_is_named():
    with pytest.raises(FedPGPError, match=r"emoji/notto\.zip is missing.*FEDPGP_ASSETS"):
        asset("emoji", "notto.zip")


def test_a_copy_of_the_code_alone_finds_the_installed_package(tmp_path):
    """As on a Flower node: the code, unpacked without its data files, is first on the path."""
    (tmp_path / "app" / "fedpgp").mkdir(parents=True)
    for name in ("__init__.py", "assets_path.py", "errors.py"):
        shutil.copy(PACKAGE / name, tmp_path / "app" / "fedpgp" / name)
    # An editable install leaves this in site-packages, whatever else is installed here.
    record = tmp_path / "site" / "fedpgp-0.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: fedpgp\nVersion: 0.0\n")
    (record / "direct_url.json").write_text(
        f'{{"url": "{PACKAGE.parent.as_uri()}", "dir_info": {{"editable": true}}}}'
    )
    script = (
        "import fedpgp.assets_path as a; print(a.__file__); print(a.asset('emoji', 'classes.csv'))"
    )

    def run():
        result = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": f"{tmp_path / 'app'}:{tmp_path / 'site'}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return [Path(line) for line in result.stdout.splitlines()]

    assert run() == [
        tmp_path / "app" / "fedpgp" / "assets_path.py",
        PACKAGE / "assets" / "emoji" / "classes.csv",
    ]
    # A plain install: the files lie beside its metadata.
    (record / "direct_url.json").unlink()
    installed = tmp_path / "site" / "fedpgp" / "assets" / "emoji" / "classes.csv"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert run()[1] == installed
