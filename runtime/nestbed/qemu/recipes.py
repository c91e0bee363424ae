"""How images are built that the node knows how to build: the folders ``images/NAME`` of the project.

``recipe.toml`` holds ``suite`` (of Debian), ``packages`` and ``disk_mib``; ``customize`` is a program that mmdebstrap runs with the root
of the image as its argument when all packages are installed.
"""

from __future__ import annotations

import hashlib
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from nestbed.errors import CorruptState, NotFound, shown, translated

CACHE = Path("/var/cache/nestbed")
"""Where ``hack/setup`` leaves what it fetched and built, for daemons that reach no mirror: in a namespace, or offline."""
_FORMAT = b"1"
"""Rises with what ``nestbed.qemu.building`` makes of the same recipe."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe. ``digest`` tells whether two are the same."""

    name: str
    suite: str
    packages: tuple[str, ...]
    disk_mib: int
    customize: Path
    digest: str


def folder() -> Path:
    """Where the recipes are: beside a checkout's sources, or where they were installed."""
    checkout = Path(__file__).parents[3] / "images"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share/nestbed/images"


def names() -> list[str]:
    """Of all recipes."""
    return sorted(path.parent.name for path in folder().glob("*/recipe.toml"))


def find(name: str) -> Recipe:
    """A recipe.

    Raises:
        NotFound: none (reason RECIPE_NOT_FOUND). CorruptState: it cannot be understood.
    """
    if name not in names():
        raise NotFound(
            f"there is no recipe {shown(name)}",
            reason="RECIPE_NOT_FOUND",
            remedy=f"there are: {', '.join(names()) or 'none'}",
            recipe=shown(name),
        )
    return read(folder() / name)


def read(path: Path) -> Recipe:
    """The recipe in a folder.

    Raises:
        CorruptState: it cannot be understood.
    """
    with translated(f"reading the recipe {path}", path=path):
        text, customize = (path / "recipe.toml").read_bytes(), path / "customize"
        digest = hashlib.sha256(b"\0".join((_FORMAT, text, customize.read_bytes()))).hexdigest()[:12]
    try:
        data = tomllib.loads(text.decode())
        return Recipe(path.name, str(data["suite"]), tuple(map(str, data["packages"])), int(data["disk_mib"]), customize, digest)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptState(
            f"the recipe {path} cannot be understood: {error}",
            reason="CORRUPT_RECIPE",
            remedy="install nestbed again",
            path=path,
            cause=error,
        ) from error


def cached(recipe: Recipe) -> Path:
    """Where what ``hack/setup`` built by a recipe is, or would be."""
    return CACHE / "images" / f"{recipe.name}-{recipe.digest}"


def prebuilt(recipe: Recipe) -> Path | None:
    """What ``hack/setup`` built by the same recipe, if it did. None but root may have put it there."""
    path = cached(recipe)
    for place in (CACHE, path.parent, path):
        try:
            status = place.stat()
        except OSError:
            return None
        if status.st_uid != 0 or status.st_mode & 0o022:
            return None
    return path
