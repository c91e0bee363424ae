"""How many neighbours the kernel can know: one table holds those of all network namespaces, so of all containers together.

Its limit, ``net.ipv4.neigh.default.gc_thresh3`` and its sibling of IPv6, is the administrator's. Beyond it addresses do not answer.
"""

from __future__ import annotations

import contextlib
import math

from nestbed.errors import translated
from nestbed.linux import neighbour
from nestbed.linux.rtnl import Rtnl
from nestbed.model import Ability

ENOUGH = 8192
"""For ninety members of a LAN who all talk to each other."""


def ability() -> Ability:
    """What is so now.

    Raises:
        nestbed.errors of the kernel's refusals.
    """
    with translated("asking for the limits of the tables of neighbours"), contextlib.closing(Rtnl()) as rtnl:
        limits = neighbour.limits(rtnl)
    least = min(limits.values(), default=0)
    few = {f"net.ipv{version}.neigh.default.gc_thresh3": limit for version, limit in sorted(limits.items()) if limit < ENOUGH}
    if not few:
        return Ability("large-lans", available=True, detail=f"the kernel can know {least} neighbours at a time")
    settings = " ".join(f"{name}={ENOUGH}" for name in few)
    return Ability(
        "large-lans",
        available=False,
        detail=", ".join(f"{name} is {limit}" for name, limit in few.items()),
        consequence=f"addresses do not answer if more than {math.isqrt(least)} members of a LAN talk to all others within seconds, or as"
        f" many pairs on several LANs; to allow for more: sysctl -w {settings}",
    )
