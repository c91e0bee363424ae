"""What the relay is asked to do: the file ``relay.json``, written by the plane, replaced as a whole, with a number that grows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "relay.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class RelayedLan:
    """One LAN. ``tap`` exists. ``group`` and ``port``, ``peers`` and ``ttl`` as of ``nestbed.lanmodel.Lan``; ``underlays`` in the order of
    preference. ``is_fast``: the kernel carries what fits an underlay, and gives the tap what does not.
    """

    id: str
    tap: str
    mtu: int
    group: str
    port: int
    underlays: tuple[str, ...]
    peers: tuple[str, ...] = ()
    ttl: int = 1
    is_fast: bool = False


@dataclass(frozen=True, slots=True)
class DelayLeg:
    """Frames read from ``tap`` (which exists) are written back to it after ``delay_us``, give or take up to ``jitter_us``.

    ``reorder`` is the fraction that is not delayed. Of more than ``limit_frames`` waiting, new ones are dropped; 0 is no limit.
    With another ``epoch`` than before, counting begins anew.
    """

    tap: str
    delay_us: int
    jitter_us: int = 0
    reorder: float = 0.0
    limit_frames: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that is asked."""

    generation: int = 0
    lans: tuple[RelayedLan, ...] = ()
    legs: tuple[DelayLeg, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is."""
        return bool(self.lans or self.legs)


def write(run_dir: Path, wanted: Wanted) -> None:
    """Replace the file: a reader sees the old or the new one (OSError)."""
    new = run_dir / f"{FILE}.new"
    new.write_text(json.dumps({"version": VERSION, **asdict(wanted)}))
    new.rename(run_dir / FILE)


def read(run_dir: Path) -> Wanted:
    """The file; nothing is wanted if there is none.

    Raises:
        ValueError: it is damaged. OSError.
    """
    try:
        data = (run_dir / FILE).read_bytes()
    except FileNotFoundError:
        return Wanted()
    try:
        told = json.loads(data)
        if told["version"] != VERSION:
            raise ValueError(f"{FILE} has version {told['version']!r}, not {VERSION}")  # noqa: TRY301 - caught with its kind below
        return Wanted(
            int(told["generation"]),
            tuple(RelayedLan(**{**lan, "underlays": tuple(lan["underlays"]), "peers": tuple(lan["peers"])}) for lan in told["lans"]),
            tuple(DelayLeg(**leg) for leg in told["legs"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{FILE} is damaged: {error}") from error
