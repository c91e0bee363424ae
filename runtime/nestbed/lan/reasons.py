"""Why a frame was dropped: numbered once, for the BPF programs, the relay, the API and people.

``bpf/reasons.h`` says the same to the BPF programs; a test compares the two. A number never changes its meaning. What is counted
under which reason is the same on the fast and the slow path.
"""

from __future__ import annotations

import enum

REASONS_MAX = 32
"""The size of a table of drops by reason; numbers are below it."""


class Reason(enum.IntEnum):
    """A reason for a drop; 0 is none. :attr:`label` is how the API, the metrics and nbctl call it."""

    OWN = 1
    """A datagram of this node's own came back to it."""
    LOOP = 2
    """The source MAC is pinned to where it came from before: the frame goes round in a loop."""
    RUNT = 3
    """Shorter than an Ethernet header."""
    GIANT = 4
    """Longer than the LAN's MTU allows."""
    MALFORMED = 5
    """Headers that contradict themselves or the length: not Ethernet, or a source MAC that no station can have."""
    NO_LAN = 6
    """The LAN is not there (any more)."""
    OVERSIZE = 8
    """The datagram does not fit the underlay, and there is no slow path."""
    NO_MEMORY = 9
    """The kernel had no room for the frame or its headers."""
    UNDERLAY_DOWN = 10
    """No underlay is there to carry it."""
    STRANGER = 11
    """From an address that is not among the LAN's peers."""
    LOSS = 12
    """Lost on purpose: the loss asked for."""
    QUEUE = 13
    """The queue limit of a rate or a delay was reached."""
    FOREIGN = 14
    """On the control network: not in the name of the container that it came from."""
    UNASKED = 15
    """A report of IPv6 multicast listeners about its sender's own addresses alone, where no multicast router has asked for reports."""

    @property
    def label(self) -> str:
        """The name in lower case with hyphens: ``no-lan``."""
        return self.name.lower().replace("_", "-")
