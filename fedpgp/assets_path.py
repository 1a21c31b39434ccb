"""Where the package's weights and images are.

Not always beside the code: Flower sends an application's code (and only its code) to each node and
puts that copy first on ``sys.path``, where it hides the installed package that has the files.
"""

import json
import os
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from fedpgp.errors import FedPGPError

VARIABLE = "FEDPGP_ASSETS"

SHIPPED = ("tiny", "tiny_vit")
"""Models whose weights come with the package (tools/embedded)."""


def asset(*parts: str) -> Path:
    """Path of a file or folder that is shipped with the package: ``asset("emoji", "noto.zip")``.

    Looked for in the folder that the environment variable ``FEDPGP_ASSETS`` names, then beside this
    file, then in the installed distribution (editable or not).

    Raises:
        FedPGPError: it is in none of them.
    """
    tried = []
    for folder in _folders():
        path = folder.joinpath(*parts)
        if path.exists():
            return path
        tried.append(str(folder))
    raise FedPGPError(
        f"the shipped file {'/'.join(parts)} is missing (looked in {', '.join(tried)}); install "
        f"the package again, or set {VARIABLE} to the folder fedpgp/assets of a complete copy"
    )


def package_folders(*parts: str) -> Iterator[Path]:
    """Where a folder of this project's code may be
    (``package_folders("experiments", "reporting")``): in the copy that is running,
    then in the installed one.
    """
    here = Path(__file__).resolve().parents[1]
    yield here.joinpath(*parts)
    installed = _installed()
    if installed is not None and installed != here:
        yield installed.joinpath(*parts)


def _folders() -> Iterator[Path]:
    if os.environ.get(VARIABLE):
        yield Path(os.environ[VARIABLE]).expanduser()
    yield from package_folders("fedpgp", "assets")


@cache
def _installed() -> Path | None:
    """The folder that holds the installed packages, or None where none are installed."""
    try:
        found = distribution("fedpgp")
    except PackageNotFoundError:
        return None
    direct = json.loads(found.read_text("direct_url.json") or "{}")
    if direct.get("dir_info", {}).get("editable"):
        return Path(unquote(urlparse(direct["url"]).path))
    return Path(str(found.locate_file("")))
