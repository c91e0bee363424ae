"""Topologies built by programs, with the words of the file::

    net = Builder("page", routing="static")
    net.lan("lan0", delay="5ms")
    net.element("web", nics=["lan0"], command=["python3", "-m", "http.server"])
    net.element("bot[1-40]", nics=["lan0"], after=["web"])
    Path("vtopo.yaml").write_text(net.text())

A word that is a keyword of Python has an underscore behind it (``from_``).
"""

from __future__ import annotations

from typing import Any

import yaml

from nestbed.experiment import plan
from nestbed.experiment.topology import Topology


class Builder:
    """A vtopo in the making. What is wrong is told by :meth:`topology`, as it would be of a file with this text."""

    def __init__(self, experiment: str, **words: Any) -> None:
        self._file: dict[str, Any] = {"experiment": experiment, **_plain(words), "lans": {}, "elements": {}}

    def lan(self, name: str, **words: Any) -> None:
        """Declare a LAN, or a range of them. A second one of the same name replaces the first."""
        self._file["lans"][name] = _plain(words)

    def element(self, name: str, **words: Any) -> None:
        """Declare an element, or a range of them. A second one of the same name replaces the first."""
        self._file["elements"][name] = _plain(words)

    def text(self) -> str:
        """The file."""
        return str(yaml.safe_dump(self._file, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None))

    def topology(self) -> Topology:
        """What it describes, with every address.

        Raises:
            InvalidArgument: a mistake, with its line in :meth:`text`.
        """
        return plan.understand(self.text(), f"{self._file['experiment']} (built)")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key).rstrip("_"): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
