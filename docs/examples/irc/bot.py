"""An IRC bot for demonstrations, and the operator who talks to bots. Harmless: it answers, and fetches one page again and again, slowly
enough and for a bounded time, when it is told to in its channel.

Usage: bot.py SERVER NICK [URL]      a bot; URL is what it fetches
       bot.py SERVER NICK --operator  says in the channel what is added to the orders of its container, and reports who said what

In the channel: `hi` is answered; `fetch RATE SECONDS` begins RATE fetches a second (50 at most) for SECONDS (120 at most), `stop` ends
them; `quit` ends the bot. What it does it reports through the agent's directory (docs/agent.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import urllib.request
from pathlib import Path

PORT = 6667
CHANNEL = "#demo"
RATE_MAX, SECONDS_MAX = 50, 120.0
AGENT = Path("/run/nestbed/agent")
CONNECT_SECONDS = 60.0


def report(text: str) -> None:
    """Tell the agent; a line, in one write."""
    with contextlib.suppress(OSError), open(os.open(AGENT / "report", os.O_WRONLY), "wb", buffering=0) as fifo:
        fifo.write(f"{text}\n".encode())


class Load:
    """Fetches a page again and again, for a bounded time, at a bounded rate, one fetch after the other."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._task: asyncio.Task[None] | None = None
        self._fetched = self._failed = 0

    def start(self, rate: float, seconds: float) -> None:
        """Begin; a load under way ends."""
        self.stop()
        self._task = asyncio.create_task(self._run(min(rate, RATE_MAX), min(seconds, SECONDS_MAX)))

    def stop(self) -> None:
        """End it, if there is one."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self, rate: float, seconds: float) -> None:
        self._fetched = self._failed = 0
        report("load=on")
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                due = time.monotonic() + 1 / rate
                try:
                    await asyncio.to_thread(self._fetch)
                    self._fetched += 1
                except OSError:
                    self._failed += 1
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            report(f"load=off fetched={self._fetched} failed={self._failed}")

    def _fetch(self) -> None:
        with urllib.request.urlopen(self._url, timeout=5) as page:
            page.read()


class Client:
    """A connection to an IRC server (RFC 2812), in the channel once `joined` is set."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nick: str) -> None:
        self._reader, self._writer = reader, writer
        self.nick = nick

    def send(self, line: str) -> None:
        """Send a line."""
        self._writer.write(f"{line}\r\n".encode())

    def say(self, text: str) -> None:
        """Say something in the channel."""
        self.send(f"PRIVMSG {CHANNEL} :{text}")

    async def heard(self) -> tuple[str, str]:
        """Who said what in the channel next; joins it on the way, and reports that it has.

        Raises:
            EOFError: the server has gone.
        """
        while True:
            line = (await self._reader.readline()).decode(errors="replace").rstrip("\r\n")
            if not line:
                raise EOFError
            source, _, rest = line.partition(" ") if line.startswith(":") else ("", "", line)
            command, _, parameters = rest.partition(" ")
            sender = source[1:].partition("!")[0]
            if command == "PING":
                self.send(f"PONG {parameters}")
            elif command == "001":
                self.send(f"JOIN {CHANNEL}")
            elif command == "JOIN" and sender == self.nick:
                report("state=ready")
            elif command == "PRIVMSG":
                return sender, parameters.partition(" :")[2].strip()


async def connect(server: str, nick: str) -> Client:
    """Register with the server, which may not be there yet."""
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            reader, writer = await asyncio.open_connection(server, PORT)
        except OSError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.5)
        else:
            client = Client(reader, writer, nick)
            client.send(f"NICK {nick}")
            client.send(f"USER {nick} 0 * :{nick}")
            return client


async def bot(client: Client, url: str) -> None:
    """Do what is said in the channel, until `quit`."""
    load = Load(url)
    while True:
        _, text = await client.heard()
        match text.split():
            case ["hi"]:
                client.say(f"hi from {client.nick}")
            case ["fetch", rate, seconds] if rate.isdecimal() and seconds.isdecimal() and int(rate):
                load.start(int(rate), int(seconds))
            case ["stop"]:
                load.stop()
            case ["quit"]:
                load.stop()
                await asyncio.sleep(0)
                client.send("QUIT :bye")
                report("state=quit")
                return


async def operator(client: Client) -> None:
    """Say what the orders are, and report what is heard, until the order `quit` was said."""
    follow = await asyncio.create_subprocess_exec("tail", "-n", "+1", "-f", str(AGENT / "orders"), stdout=asyncio.subprocess.PIPE)
    assert follow.stdout is not None
    orders = follow.stdout

    async def obey() -> None:
        while line := (await orders.readline()).decode().strip():
            client.say(line)
            if line == "quit":
                return

    async def listen() -> None:
        while True:
            sender, text = await client.heard()
            report(f"from={sender} {text}")

    tasks = [asyncio.create_task(obey()), asyncio.create_task(listen())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(1)  # what is on its way to the server
        client.send("QUIT :bye")
        report("state=quit")
    finally:
        for task in tasks:
            task.cancel()
        follow.kill()
        await follow.wait()


async def main() -> int:
    """0 once it was told to quit; 1 if the server went away."""
    server, nick, *rest = sys.argv[1:]
    client = await connect(server, nick)
    try:
        await (operator(client) if rest == ["--operator"] else bot(client, rest[0] if rest else ""))
    except EOFError:
        report("state=lost")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
