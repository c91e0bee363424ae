"""The directory through which programs in containers and the node's agent speak: its names, and what is in it at first.

Shared by those who make it inside and those who read it from outside; ``docs/agent.md`` is the specification.
"""

from __future__ import annotations

DIRECTORY = "/run/nestbed/agent"
"""Where it is inside. It lies in the container's own memory, and is made anew for every run."""

REPORT = "report"
"""A FIFO: each line is a report. For processes also the name of the FIFO in the bundle that is shown here."""
DROP = "drop"
"""A directory: each file put here is a report."""
ORDERS = "orders"
"""A file: each line is an order."""
BARRIERS = "barriers"
"""A directory: the answers to those who wait at barriers, by the ids of their arrivals."""
BARRIER = "barrier"
"""A program for the shell."""

REPORT_MODE, DROP_MODE, ORDERS_MODE, BARRIERS_MODE, BARRIER_MODE = 0o622, 0o1777, 0o644, 0o755, 0o755

PASSED, TIMED_OUT, REFUSED = "passed", "timed-out", "refused"

BARRIER_SCRIPT = """\
#!/bin/sh
# barrier NAME COUNT [SECONDS]: wait until COUNT have come to the barrier NAME. Ends with 0 then, with 1 after SECONDS (60).
[ $# -ge 2 ] || { echo "usage: $0 NAME COUNT [SECONDS]" >&2; exit 2; }
here=${0%/*} seconds=${3:-60} id=$1.$$.$(date +%s)
echo "barrier=$1 count=$2 timeout=$seconds id=$id" >"$here/report" || exit 2
outcome='no answer' tries=$(((${seconds%.*} + 10) * 10))
while [ $((tries -= 1)) -gt 0 ]; do
    [ -e "$here/barriers/$id" ] && read -r outcome <"$here/barriers/$id" && break
    sleep 0.1
done
[ "$outcome" = passed ] || { echo "barrier $1: $outcome" >&2; exit 1; }
"""
