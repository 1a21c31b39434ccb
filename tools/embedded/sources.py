"""The packages that the images come from: fetched through npm (and apt for one font),
verified, read in place.

`sources.json` pins each package's name, version and the SHA-256 of its archive. Only the
renderer is unpacked to disk.
"""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SIZE = 64  # pixels, both sides, of every rendered image
DEFAULT_WORK = Path.home() / ".cache" / "fedpgp" / "embedded"


class SourceError(RuntimeError):
    """A package cannot be fetched, or is not the one that `sources.json` names."""


def load_sources() -> dict[str, dict]:
    """`sources.json` by package name."""
    return {
        entry["name"]: entry
        for entry in json.loads((HERE / "sources.json").read_text(encoding="utf-8"))
    }


def _archive_name(entry: dict) -> str:
    if entry["manager"] == "apt":
        return f"{entry['name']}_{entry['version']}_all.deb"
    return f"{entry['name'].lstrip('@').replace('/', '-')}-{entry['version']}.tgz"


def fetch(entry: dict, work: Path) -> Path:
    """The package's archive in `work/packages`, downloaded if it is not there; its
    SHA-256 is always checked."""
    folder = work / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / _archive_name(entry)
    wanted = f"{entry['name']} {entry['version']}"
    if not archive.exists():
        if entry["manager"] == "apt":
            command = ["apt-get", "download", f"{entry['name']}={entry['version']}"]
        else:
            command = ["npm", "pack", "--silent", f"{entry['name']}@{entry['version']}"]
        if shutil.which(command[0]) is None:
            raise SourceError(
                f"{command[0]} is needed to fetch {wanted}; or put its archive at {archive}"
            )
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not archive.exists():
            raise SourceError(
                f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}; or put the archive "
                f"at {archive}"
            )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != entry["sha256"]:
        raise SourceError(
            f"{archive} has SHA-256 {digest}, but {wanted} is pinned to {entry['sha256']}; "
            "delete it and try again"
        )
    return archive


@cache
def _members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {
            m.name.split("/", 1)[-1]: tar.extractfile(m).read()
            for m in tar.getmembers()
            if m.isfile()
        }


def read(entry: dict, work: Path, member: str) -> bytes | None:
    """One file of a package (path below its root), or None when the package has no such file."""
    archive = fetch(entry, work)
    if entry["manager"] == "apt":
        tarball = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", archive], check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
            return tar.extractfile("./" + member).read()
    return _members(archive).get(member)


def read_json(entry: dict, work: Path, member: str):
    """One JSON file of a package, or {} when the package has no such file."""
    data = read(entry, work, member)
    return {} if data is None else json.loads(data)


def _renderer(work: Path, sources: dict[str, dict]) -> Path:
    """Folder with `node_modules/@resvg`, unpacked from the verified archives."""
    root = work / "renderer"
    for name in ("@resvg/resvg-js", "@resvg/resvg-js-linux-x64-gnu"):
        archive = fetch(sources[name], work)
        target = root / "node_modules" / name
        if not (target / "package.json").exists():
            target.mkdir(parents=True, exist_ok=True)
            for member, data in _members(archive).items():
                path = target / member
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    return root


def icon_svg(icons: dict, name: str) -> str | None:
    """The SVG document of one icon of an iconify set (aliases with a plain parent included), or
    None."""
    alias = icons.get("aliases", {}).get(name)
    if alias is not None:
        if set(alias) - {"parent", "hidden"}:  # rotated or flipped copies are of no use here
            return None
        name = alias["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width, height = (
        icon.get("width", icons.get("width", 16)),
        icon.get("height", icons.get("height", 16)),
    )
    side = max(width, height)  # images that are not square are centred on a square
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}" color="#000">{icon["body"]}</svg>'
    )


def render(
    documents: list[str], work: Path, sources: dict[str, dict], chunk: int = 256
) -> list[np.ndarray | None]:
    """Each SVG document as (64, 64, 3) uint8 RGB on white, or None where the
    renderer fails on it."""
    root = _renderer(work, sources)
    jobs, out = root / "jobs.json", root / "pixels.bin"
    result: list[np.ndarray | None] = [None] * len(documents)
    pending = [
        (start, min(start + chunk, len(documents))) for start in range(0, len(documents), chunk)
    ]
    while pending:
        start, stop = pending.pop()
        jobs.write_text(json.dumps(documents[start:stop]), encoding="utf-8")
        out.unlink(missing_ok=True)
        done = subprocess.run(
            ["node", str(HERE / "render.mjs"), str(jobs), str(out)],
            cwd=root,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            pixels = np.frombuffer(out.read_bytes(), np.uint8).reshape(stop - start, SIZE, SIZE, 3)
            result[start:stop] = [image.copy() for image in pixels]
        elif "Cannot find module" in done.stderr:
            raise SourceError(
                f"the renderer does not run on this machine: {done.stderr.strip()[-300:]}"
            )
        elif stop - start > 1:  # halve until the document that fails stands alone
            middle = (start + stop) // 2
            pending += [(start, middle), (middle, stop)]
    return result
