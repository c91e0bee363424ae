"""Which containers and LANs a command line means: names, unique prefixes of ids, globs, labels."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from nbctl import values
from nbctl.failure import FAILED, OK, Failure, Usage, nearest, report
from nestbed.errors import NestbedError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence

    from nbctl.parser import Parser

T = TypeVar("T")
AT_ONCE = 64
"""Calls under way at once when a verb takes many."""


class Named(Protocol):
    """What can be selected."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


class Target(NamedTuple):
    """One thing a verb acts on: how to name it to people and to the node."""

    shown: str
    ref: str


def add_options(parser: Parser, noun: str = "CONTAINER") -> None:
    """The arguments that :func:`targets` reads."""
    parser.add_argument("names", nargs="*", metavar=noun, help="name, unique prefix of an id, or glob such as 'web*'")
    add_label_option(parser)


def add_label_option(parser: Parser, meaning: str = "only those with this label (may be repeated)") -> None:
    """``-l KEY=VALUE``."""
    parser.add_argument("-l", "--label", dest="labels", metavar="KEY=VALUE", type=values.pair, action="append", default=[], help=meaning)


def is_glob(text: str) -> bool:
    """Whether ``text`` is a pattern: names and ids hold none of its characters."""
    return any(char in text for char in "*?[")


def is_single(args: Namespace) -> bool:
    """Whether exactly one thing is named, so that the answer is one message and not a list."""
    return len(args.names) == 1 and not args.labels and not is_glob(args.names[0])


async def targets(
    args: Namespace, listing: Callable[[Mapping[str, str]], Coroutine[Any, Any, list[N]]], *, none_is_fine: bool = False
) -> list[Target]:
    """What ``args.names`` and ``args.labels`` select. Plain names without a label are left to the node to resolve.

    Raises:
        Usage: nothing is given.
        Failure: a name or glob matches nothing, or a prefix more than one.
    """
    if not args.names and not args.labels:
        raise Usage("nothing is selected", remedy="give names, globs such as 'web*', or a label: -l KEY=VALUE")
    if not args.labels and not any(map(is_glob, args.names)):
        return [Target(name, name) for name in dict.fromkeys(args.names)]
    found = await listing(dict(args.labels))
    chosen = choose(args.names, found, none_is_fine=none_is_fine) if args.names else found
    return [Target(item.name, item.id) for item in chosen]


def choose(names: Sequence[str], items: Sequence[N], *, none_is_fine: bool = False) -> list[N]:
    """The items that ``names`` mean, each once, in the order of ``names``, then as listed.

    Raises:
        Failure: a name or (unless ``none_is_fine``) a glob matches nothing, or a prefix of an id more than one.
    """
    chosen: dict[str, N] = {}
    for name in names:
        matches = [item for item in items if matches_path(item.name, name)] if is_glob(name) else [_one(name, items)]
        if not matches and not none_is_fine:
            raise Failure(f"nothing matches '{name}'", remedy="`nbctl ps -a` and `nbctl lan ls` show what there is")
        chosen.update((item.id, item) for item in matches)
    return list(chosen.values())


def matches_path(path: str, glob: str) -> bool:
    """Whether a name or path matches part by part: ``*`` is what the node itself has, ``vm1/*`` what the node inside vm1 has."""
    parts, globs = path.split("/"), glob.split("/")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def _one(name: str, items: Sequence[N]) -> N:
    for item in items:
        if name in {item.name, item.id}:
            return item
    matches = [item for item in items if name and item.id.startswith(name)]
    if len(matches) > 1:
        raise Failure(f"'{name}' is the beginning of {len(matches)} ids", remedy="write more of the id, or the name")
    if not matches:
        meant = nearest(name, [item.name for item in items])
        raise Failure(
            f"nothing is named '{name}'",
            remedy=f"did you mean {meant}?" if meant else "`nbctl ps -a` and `nbctl lan ls` show what there is",
        )
    return matches[0]


async def each(chosen: Collection[Target], act: Callable[[Target], Awaitable[T]], done: Callable[[Target, T], None]) -> int:
    """Do ``act`` for all, at most AT_ONCE at a time; tell ``done`` of each success, in order; report all errors; the exit code."""
    import asyncio  # noqa: PLC0415 - help and misspellings do without

    gate = asyncio.Semaphore(AT_ONCE)
    failures: list[NestbedError] = []

    async def one(target: Target) -> T:
        async with gate:
            return await act(target)

    tasks = [asyncio.ensure_future(one(target)) for target in chosen]
    try:
        for target, task in zip(chosen, tasks, strict=True):
            try:
                result = await task
            except NestbedError as error:
                failures.append(error)
            else:
                done(target, result)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    report_all(failures)
    return FAILED if failures else OK


def report_all(failures: Sequence[NestbedError]) -> None:
    """A line of cause for each, and its remedy after the last in a row that shares it."""
    for index, error in enumerate(failures):
        shared = index + 1 < len(failures) and failures[index + 1].remedy == error.remedy
        report(error.message, "" if shared else error.remedy)
