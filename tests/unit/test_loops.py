"""Of which loops the daemon tells, and when."""

from __future__ import annotations

import dataclasses

from nestbed.lan.fastpath import Refusal
from nestbed.lan.loops import Loops
from nestbed.lan.programs import Closing

SEEN = Refusal(7, "02:00:00:00:00:01", 1, "", "192.0.2.1")


def test_a_loop_is_told_once_while_it_lasts() -> None:
    loops = Loops()
    more = dataclasses.replace(SEEN, frames=9)
    assert loops.news([SEEN]) == [SEEN]
    assert loops.news([SEEN]) == []
    assert loops.news([more]) == []
    other = dataclasses.replace(SEEN, mac="02:00:00:00:00:02")
    assert loops.news([more, other]) == [other]


def test_a_port_is_told_once_while_its_loop_lasts() -> None:
    loops, cut = Loops(), Closing(1, 3, SEEN.mac)
    assert loops.port_news({7: cut}) == {7: cut}
    assert loops.port_news({7: cut}) == {}
    assert loops.port_news({7: dataclasses.replace(cut, count=2), 8: cut}) == {8: cut}


def test_underlays_that_heard_more_since() -> None:
    loops = Loops()
    assert loops.grown({(7, 2): 1}) == {(7, 2)}
    assert loops.grown({(7, 2): 1, (7, 3): 4}) == {(7, 3)}
    assert loops.grown({(7, 2): 2, (7, 3): 4}) == {(7, 2)}
