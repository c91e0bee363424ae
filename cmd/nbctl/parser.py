"""The command line: verbs, nouns, options; what is misspelt is answered with the nearest right word.

Only the parser of the verb in use is built, and only its module is imported: a thousandth of a second instead of thirty.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

from nbctl.commands import Command
from nbctl.failure import OK, USAGE, Quit, Usage, nearest

OUTPUTS = ("table", "json", "yaml", "name")


class Verb(NamedTuple):
    """Where a verb is implemented, and the line that ``nbctl --help`` has for it."""

    module: str
    summary: str


VERBS: dict[str, Verb] = {
    "run process": Verb("run", "make a process container and run a program in it"),
    "run qemu": Verb("run", "make a virtual machine and run a program in it, or just let it run"),
    "create process": Verb("run", "make a process container; nothing runs yet"),
    "create qemu": Verb("run", "make a virtual machine; nothing runs yet"),
    "start": Verb("lifecycle", "run the program of containers that do not run"),
    "stop": Verb("lifecycle", "ask programs to end, and end them after a while"),
    "kill": Verb("lifecycle", "send a signal to programs"),
    "rm": Verb("lifecycle", "remove containers"),
    "wait": Verb("lifecycle", "wait until containers have stopped; print their exit statuses"),
    "pause": Verb("lifecycle", "freeze all processes of containers"),
    "unpause": Verb("lifecycle", "let frozen containers go on"),
    "update": Verb("lifecycle", "change limits and restart policy"),
    "rename": Verb("lifecycle", "give a container another name"),
    "exec": Verb("run", "run a further program in a container"),
    "attach": Verb("run", "connect to the input and output of a container's program"),
    "cp": Verb("copy", "copy files into and out of a container"),
    "ps": Verb("listing", "list containers"),
    "inspect": Verb("listing", "show all that is known of containers"),
    "logs": Verb("logs", "show what a container's program wrote"),
    "stats": Verb("stats", "show the use of resources"),
    "top": Verb("stats", "watch all containers, the busiest first"),
    "events": Verb("node", "show what happens"),
    "lan create": Verb("lan", "make a LAN"),
    "lan ls": Verb("lan", "list LANs"),
    "lan inspect": Verb("lan", "show all that is known of LANs"),
    "lan rm": Verb("lan", "remove LANs that have no members"),
    "lan connect": Verb("lan", "give a container a NIC on a LAN"),
    "lan disconnect": Verb("lan", "take a container's NICs on a LAN away"),
    "lan impair": Verb("impair", "change what is done to frames: rate, delay, loss and more"),
    "lan up": Verb("links", "plug cables of NICs in again"),
    "lan down": Verb("links", "unplug cables of NICs"),
    "lan stats": Verb("traffic", "count frames of LANs and ports"),
    "image ls": Verb("image", "list images"),
    "image build": Verb("image", "make an image by a recipe"),
    "image import": Verb("image", "make an image of the file of a disk"),
    "image inspect": Verb("image", "show all that is known of images"),
    "image rm": Verb("image", "remove images"),
    "capture": Verb("capture", "write the frames of a LAN or NIC to a pcapng file"),
    "agent ls": Verb("agent", "list containers with what they reported last"),
    "agent reports": Verb("agent", "show what a container's programs reported"),
    "agent tell": Verb("agent", "add a line to what a container's programs read as orders"),
    "agent barriers": Verb("agent", "show who waits at which barrier"),
    "agent traffic": Verb("agent", "count the frames of an experiment's elements, by class"),
    "up": Verb("experiment", "bring an experiment up, or to what its files say now"),
    "down": Verb("experiment", "remove experiments with all they have"),
    "status": Verb("experiment", "show how experiments are"),
    "diff": Verb("experiment", "show what `up` would change"),
    "links up": Verb("links", "plug cables of an experiment in again"),
    "links down": Verb("links", "unplug cables of an experiment"),
    "verify": Verb("experiment", "look from inside every element, and tell what is not as the files say"),
    "validate": Verb("topology", "check the files of an experiment"),
    "graph": Verb("topology", "draw an experiment"),
    "import topdl": Verb("exchange", "make a vtopo file of a topdl file"),
    "import containerlab": Verb("exchange", "make a vtopo file of a containerlab file"),
    "export topdl": Verb("exchange", "make a topdl file of a vtopo file"),
    "export containerlab": Verb("exchange", "make a containerlab file of a vtopo file"),
    "info": Verb("node", "tell what this node can and cannot do"),
    "audit": Verb("node", "compare the node's records with its kernel"),
    "node ls": Verb("node", "list the node and those inside its virtual machines"),
    "node info": Verb("node", "the same as info"),
    "node events": Verb("node", "the same as events"),
    "node audit": Verb("node", "the same as audit"),
    "node metrics": Verb("node", "show all counters in Prometheus' text format"),
    "version": Verb("node", "show the versions of nbctl and of the node"),
    "completion": Verb("completion", "print the completion of a shell"),
}

NOUNS: dict[str, str] = {
    "run": "make a container of a kind and run a program in it",
    "create": "make a container of a kind; nothing runs yet",
    "lan": "LANs: Ethernet segments that containers meet on",
    "agent": "programs in containers: what they report, orders to them, barriers at which they meet",
    "links": "cables of an experiment's elements and LANs",
    "image": "images: what virtual machines start from",
    "node": "the machine that runs nestbedd, and those inside it",
    "import": "make a vtopo file of another tool's",
    "export": "make another tool's file of a vtopo file",
}
"""First words that need a second one, and what they are about."""

_HABITS = {
    "list": "ps",
    "ls": "ps",
    "delete": "rm",
    "remove": "rm",
    "destroy": "rm",
    "resume": "unpause",
    "network": "lan",
    "net": "lan",
    "describe": "inspect",
    "show": "inspect",
    "shell": "exec",
    "log": "logs",
    "copy": "cp",
    "tcpdump": "capture",
    "sniff": "capture",
    "dump": "capture",
}
"""What people who come from elsewhere type, where the spelling gives no hint."""

_ENVIRONMENT = """\
Environment:
  NBCTL_HOST           address, as --host
  NBCTL_RUN_DIR        run directory whose sockets are used (/run/nestbed)
  NBCTL_OUTPUT         form of output, as --output
  NBCTL_TLS_CA, NBCTL_TLS_CERT, NBCTL_TLS_KEY
                       files for tcp:// addresses

Every verb explains itself: nbctl VERB --help"""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, up to 120 columns; argparse's own way of finding that out imports half the library."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=_help_width())


def _help_width() -> int:
    try:
        return max(60, min(120, os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1).columns)) - 2
    except (OSError, ValueError):
        return 98


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`Usage`, and knows the nearest right option."""

    def __init__(self, prog: str, description: str, examples: str = "", usage: str | None = None) -> None:
        super().__init__(
            prog,
            usage,
            description,
            f"Examples:\n{examples}" if examples else None,
            formatter_class=Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._seen: Sequence[str] = ()
        self.add_argument("-h", "--help", action="help", help="show this help")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options and arguments of ``argv``.

        Raises:
            Usage: they are wrong.
            Quit: help was asked for, and shown.
        """
        self._seen = argv
        found, unknown = self.parse_known_args(argv)
        if unknown:
            self._refuse(unknown[0])
        return found

    def error(self, message: str) -> NoReturn:
        """Raise the message; a misspelt option is blamed before what it led to."""
        for word in self._seen:
            if word == "--":
                break
            if word.startswith("--") and word.partition("=")[0] not in self._option_string_actions:
                self._refuse(word)
        raise Usage(message, remedy=f"see `{self.prog} --help`")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            sys.stderr.write(message)
        raise Quit(status)

    def _refuse(self, word: str) -> NoReturn:
        name = word.partition("=")[0]
        if not name.startswith("-") or name == "-":
            raise Usage(f"`{self.prog}` does not know what to do with '{word}'", remedy=f"see `{self.prog} --help`")
        meant = (
            nearest(name, [option for option in self._option_string_actions if option.startswith("--")]) if name.startswith("--") else ""
        )
        raise Usage(
            f"`{self.prog}` has no option {name}",
            remedy=f"did you mean {meant}?" if meant else f"see `{self.prog} --help` for those it has",
        )


def add_global_options(parser: Parser, outputs: tuple[str, ...] = ()) -> None:
    """The options that every verb has, before it or after it."""
    group = parser.add_argument_group("global options")
    group.add_argument(
        "-H",
        "--host",
        metavar="ADDR",
        default=argparse.SUPPRESS,
        help="unix:///PATH, tcp://HOST:PORT, or a run directory; as root the admin socket of /run/nestbed, else nestbed.sock there",
    )
    forms = outputs or OUTPUTS
    group.add_argument(
        "-o",
        "--output",
        metavar="PICTURE" if outputs else "FORM",
        type=lambda text: output_form(text, forms),
        default=argparse.SUPPRESS,
        help=f"one of {', '.join(forms)}",
    )


def output_form(text: str, forms: tuple[str, ...] = OUTPUTS) -> str:
    """One of the forms."""
    if text not in forms:
        meant = nearest(text, list(forms))
        raise Usage(f"'{text}' is no form of output", remedy=f"did you mean {meant}?" if meant else "the forms are " + ", ".join(forms))
    return text


class Invocation(NamedTuple):
    """What to do, with what."""

    verb: str
    command: Command
    args: argparse.Namespace


def parse(argv: Sequence[str]) -> Invocation:
    """Read a whole command line.

    Raises:
        Usage: it is wrong.
        Quit: it asked for help, which has been shown.
    """
    words, end, rest = _split(argv)
    first = _main_parser().read(words)
    if not first.words:
        sys.stderr.write(_main_parser().format_help())
        raise Quit(USAGE)
    words = ["--help"] if first.words == ["help"] else first.words
    if words[0] == "help":
        words = [*words[1:], "--help"]
    verb, remaining = _find(words)
    command = find_command(verb)
    parser = build(verb, command)
    if not command.takes_program:
        remaining += [*end, *rest]
        rest = []
    args = parser.read(remaining)
    if command.takes_program:
        args.program = [*args.program, *(end if args.program else []), *rest]
        if not args.program and not command.may_run_nothing:
            parser.error("there is no program to run")
    for name in ("host", "output"):
        setattr(args, name, getattr(args, name, getattr(first, name, None)))
    return Invocation(verb, command, args)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Before the first ``--``, the ``--`` if there is one, and what follows: what argparse does with it differs between its versions."""
    words = list(argv)
    if "--" not in words:
        return words, [], []
    at = words.index("--")
    return words[:at], ["--"], words[at + 1 :]


def _find(words: list[str]) -> tuple[str, list[str]]:
    """The verb that ``words`` begin with, and the rest."""
    word = words[0]
    if word in NOUNS:
        second = words[1] if len(words) > 1 else ""
        if f"{word} {second}" in VERBS:
            return f"{word} {second}", words[2:]
        if second in {"", "-h", "--help"}:
            _show_noun(word, asked=bool(second))
        raise _unknown(second, word, [verb.partition(" ")[2] for verb in VERBS if verb.startswith(f"{word} ")])
    if word in VERBS:
        return word, words[1:]
    if word in {"-h", "--help"}:
        print(_main_parser().format_help(), end="")
        raise Quit(OK)
    raise _unknown(word, "", [*dict.fromkeys(verb.partition(" ")[0] for verb in VERBS)])


def _unknown(word: str, noun: str, known: list[str]) -> Usage:
    meant = (_HABITS.get(word, "") if not noun else "") or nearest(word, known)
    prefix = f"nbctl {noun}".strip()
    if noun in {"run", "create"}:
        return Usage(f"'{word}' is no kind of container", remedy=f"write `{prefix} {meant or known[0]} [OPTION]... -- CMD`")
    return Usage(
        f"`{prefix}` has no verb '{word}'", remedy=f"did you mean `{prefix} {meant}`?" if meant else f"see `{prefix} --help` for all verbs"
    )


def _main_parser() -> Parser:
    parser = Parser("nbctl", "Networks of real software on few machines.\n\n" + _verb_list(), usage="nbctl [-H ADDR] [-o FORM] VERB ...")
    parser.epilog = _ENVIRONMENT
    add_global_options(parser)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _verb_list(noun: str = "") -> str:
    lines = (f"  {name:<16}{verb.summary}" for name, verb in VERBS.items() if not noun or name.startswith(f"{noun} "))
    return "Verbs:\n" + "\n".join(lines)


def _show_noun(noun: str, *, asked: bool) -> NoReturn:
    heading = f"usage: nbctl {noun} VERB ...\n\nnbctl {noun}: {NOUNS[noun]}"
    text = f"{heading}\n\n{_verb_list(noun)}\n\nEvery verb explains itself: nbctl {noun} VERB --help\n"
    (sys.stdout if asked else sys.stderr).write(text)
    raise Quit(OK if asked else USAGE)


def find_command(verb: str) -> Command:
    """The implementation of a verb; imports its module."""
    commands: dict[str, Command] = import_module(f"nbctl.commands.{VERBS[verb].module}").COMMANDS
    return commands[verb]


def build(verb: str, command: Command) -> Parser:
    """The parser of one verb."""
    summary = VERBS[verb].summary
    description = f"{summary[0].upper()}{summary[1:]}." + (f"\n\n{command.details}" if command.details else "")
    usage = f"nbctl {verb} {command.usage}" if command.usage else None
    parser = Parser(f"nbctl {verb}", description, command.examples, usage)
    command.options(parser)
    add_global_options(parser, command.outputs)
    return parser
