"""rtnetlink(7)'s messages as pyroute2 has them, without the rest of pyroute2.

``import pyroute2`` brings in all that it can do: 163 modules, 70 ms and 8 MB, of which 25 say what a link, an address and a route are. So
these are imported while something stands in for the package that knows nothing but where its modules are. They are this module's alone
then: who imports pyroute2 elsewhere gets all of it, in its own order.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGE = "pyroute2"


@contextmanager
def _without_the_rest() -> Iterator[None]:
    spec = importlib.util.find_spec(_PACKAGE)
    if _PACKAGE in sys.modules or spec is None:
        yield
        return
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            del sys.modules[name]


with _without_the_rest():
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = ["ifaddrmsg", "ifinfmsg", "rtmsg"]
