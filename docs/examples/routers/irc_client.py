"""A small IRC client for demonstrations: joins a channel, greets when all are there, and ends when it has heard everybody.

Usage: irc_client.py SERVER NICK CHANNEL OTHER...
Exit status 0: it saw a greeting of every OTHER. 1: it did not, within 30 seconds.
"""

from __future__ import annotations

import socket
import sys
import time

PORT = 6667
SECONDS = 30.0


class Client:
    """One client: who is in the channel, and whom it has heard."""

    def __init__(self, connection: socket.socket, nick: str, channel: str, others: set[str]) -> None:
        self._connection = connection
        self._nick = nick
        self._channel = channel
        self._others = others
        self._present: set[str] = set()
        self.heard: set[str] = set()
        self._greeted = False

    def say(self, text: str) -> None:
        """Send a line."""
        self._connection.sendall(f"{text}\r\n".encode())

    def take(self, line: str) -> None:
        """Handle a line of the server."""
        source, _, rest = line.partition(" ") if line.startswith(":") else ("", "", line)
        sender = source[1:].partition("!")[0]
        match rest.split(" "):
            case ["PING", token, *_]:
                self.say(f"PONG {token}")
            case ["001", *_]:
                self.say(f"JOIN {self._channel}")
            case ["JOIN", *_]:
                self._present.add(sender)
            case ["353", *_]:
                self._present |= {name.lstrip("@+") for name in rest.rpartition(":")[2].split()}
            case ["PRIVMSG", *_]:
                print(f"{self._nick} heard {sender}: {rest.partition(' :')[2]}", flush=True)
                self.heard.add(sender)
        if not self._greeted and self._present >= self._others:
            self.say(f"PRIVMSG {self._channel} :hi from {self._nick}")
            self._greeted = True

    def is_done(self) -> bool:
        """Whether it has greeted, and heard everybody."""
        return self._greeted and self.heard >= self._others


def main() -> int:
    """Talk to the server until every other one was heard."""
    server, nick, channel, *others = sys.argv[1:]
    deadline = time.monotonic() + SECONDS
    with connect(server, deadline) as connection:
        connection.settimeout(SECONDS)
        client = Client(connection, nick, channel, set(others))
        client.say(f"NICK {nick}")
        client.say(f"USER {nick} 0 * :{nick}")
        for line in connection.makefile(encoding="utf-8", newline="\r\n"):
            client.take(line.rstrip("\r\n"))
            if client.is_done():
                client.say("QUIT :done")
                return 0
            if time.monotonic() > deadline:
                break
    print(f"{nick} did not hear {', '.join(sorted(set(others) - client.heard))}", flush=True)
    return 1


def connect(server: str, deadline: float) -> socket.socket:
    """A connection to the server, which may be starting."""
    while True:
        try:
            return socket.create_connection((server, PORT), timeout=2)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
