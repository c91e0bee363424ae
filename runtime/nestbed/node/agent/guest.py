"""The agent's directory in a virtual machine: made, listened to and written by programs that are run in the guest; it needs a shell there.

What the guest's programs report while no daemon listens waits where it is, but for what was on its way: that may be lost.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import cast

from nestbed import agentdir
from nestbed.errors import HostLacks
from nestbed.model import ExecSpec
from nestbed.runtime import Container, Output

FILE_BYTES_MAX = 3800
"""Of a file that was dropped, so that with its name it is a line."""

_LISTEN = f"""
set -e
umask 0
here={agentdir.DIRECTORY}
mkdir -p -m 755 "${{here%/*}}" $here $here/{agentdir.BARRIERS}
mkdir -p -m {agentdir.DROP_MODE:o} $here/{agentdir.DROP}
[ -p $here/{agentdir.REPORT} ] || mkfifo -m {agentdir.REPORT_MODE:o} $here/{agentdir.REPORT}
umask 022
cd $here
[ -e {agentdir.ORDERS} ] || : >{agentdir.ORDERS}
cat >.{agentdir.BARRIER} <<'END'
{agentdir.BARRIER_SCRIPT}END
chmod {agentdir.BARRIER_MODE:o} .{agentdir.BARRIER}
mv .{agentdir.BARRIER} {agentdir.BARRIER}
"/proc/$PPID/exe" watch {agentdir.DROP} $$ | while read -r _; do
    for file in {agentdir.DROP}/*; do
        [ -f "$file" ] && [ ! -L "$file" ] || continue
        line=$(head -c {FILE_BYTES_MAX} "$file" | tr '\\n' ' ')
        rm -f "./$file"
        printf 'file=%s %s\\n' "$(printf %s "${{file#*/}}" | tr -c 'A-Za-z0-9_.-' _)" "$line"
    done
done &
exec cat 0<>{agentdir.REPORT}
"""
_ORDER = f'printf "%s" "$1" >>{agentdir.DIRECTORY}/{agentdir.ORDERS}'
_ANSWER = f'cd {agentdir.DIRECTORY}/{agentdir.BARRIERS} && echo "$2" >".$1" && mv ".$1" "$1"'


async def listen(container: Container, hear: Callable[[bytes], None]) -> None:
    """Make the directory if it is not there, and pass on what is reported, until the guest ends.

    Raises:
        as ``Container.exec``; those of ``hear``.
    """
    execution = await container.exec(ExecSpec(("/bin/sh", "-c", _LISTEN), user="0", cwd="/"))
    try:
        async with aclosing(cast(AsyncGenerator[Output, None], execution.output())) as output:
            async for piece in output:
                if piece.stream == 1:
                    hear(piece.data)
    finally:
        await execution.aclose()


async def order(container: Container, line: str) -> None:
    """Add a line to the orders.

    Raises:
        HostLacks: the guest could not. As ``Container.exec``.
    """
    await _run(container, _ORDER, line)


async def answer(container: Container, arrival_id: str, outcome: str) -> None:
    """Leave an answer for who waits at a barrier.

    Raises:
        as :func:`order`.
    """
    await _run(container, _ANSWER, arrival_id, outcome)


async def _run(container: Container, script: str, *words: str) -> None:
    execution = await container.exec(ExecSpec(("/bin/sh", "-c", script, "sh", *words), user="0", cwd="/"))
    try:
        said = b"".join([piece.data async for piece in execution.output()])
        ended = await execution.wait()
    finally:
        await execution.aclose()
    if ended.code != 0:
        why = said.decode(errors="replace").strip()
        raise HostLacks(
            f"the agent's directory of container {container.id} cannot be written: {why}",
            reason="AGENT_UNREACHABLE",
            remedy=f"see what is at {agentdir.DIRECTORY} inside",
            container=container.id,
            cause=why,
        )
