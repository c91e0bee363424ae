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


def main() -> int:
    """Talk to the server until every other one was heard."""
    server, nick, channel, *others = sys.argv[1:]
    deadline = time.monotonic() + SECONDS
    with connect(server, deadline) as connection:
        connection.settimeout(SECONDS)

        def say(text: str) -> None:
            connection.sendall(f"{text}\r\n".encode())

        say(f"NICK {nick}")
        say(f"USER {nick} 0 * :{nick}")
        present: set[str] = set()
        heard: set[str] = set()
        greeted = False
        for line in connection.makefile(encoding="utf-8", newline="\r\n"):
            source, _, rest = line.rstrip("\r\n").partition(" ") if line.startswith(":") else ("", "", line.rstrip("\r\n"))
            sender = source[1:].partition("!")[0]
            words = rest.split(" ")
            if words[0] == "PING":
                say(f"PONG {words[1]}")
            elif words[0] == "001":
                say(f"JOIN {channel}")
            elif words[0] == "JOIN":
                present.add(sender)
            elif words[0] == "353":
                present |= {name.lstrip("@+") for name in rest.rpartition(":")[2].split()}
            elif words[0] == "PRIVMSG":
                print(f"{nick} heard {sender}: {rest.partition(' :')[2]}", flush=True)
                heard.add(sender)
            if not greeted and present.issuperset(others):
                say(f"PRIVMSG {channel} :hi from {nick}")
                greeted = True
            if greeted and heard.issuperset(others):
                say("QUIT :done")
                return 0
            if time.monotonic() > deadline:
                break
    print(f"{nick} did not hear {', '.join(sorted(set(others) - heard))}", flush=True)
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
