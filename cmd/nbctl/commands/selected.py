"""What verbs do with all that a command line selects, whatever it is: act on each, or show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from nbctl import output, select

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from google.protobuf.message import Message

    from nbctl.context import Context
    from nbctl.select import Target
    from nestbed.v1.container_pb2 import Container

    Listing = Callable[[Mapping[str, str]], Coroutine[Any, Any, list[Any]]]

M = TypeVar("M", bound="Message")


def containers(context: Context) -> Callable[[Mapping[str, str]], Coroutine[Any, Any, list[Container]]]:
    """All containers with some labels: what names of containers are chosen from."""

    async def listing(labels: Mapping[str, str]) -> list[Container]:
        return await context.client.list_containers(labels=labels)

    return listing


async def act(
    context: Context, args: Namespace, listing: Listing, do: Callable[[str], Awaitable[Message | None]], *, none_is_fine: bool = False
) -> int:
    """Act on all. Prints the name of each that succeeded, or at the end what the node answered."""
    answers: list[dict[str, Any]] = []

    def done(target: Target, answer: Message | None) -> None:
        if context.output in {"table", "name"}:
            output.lines([target.shown])
        else:
            answers.append({"name": target.shown} if answer is None else output.plain(answer))

    chosen = await select.targets(args, listing, none_is_fine=none_is_fine)
    code = await select.each(chosen, lambda target: do(target.ref), done)
    if context.output in {"json", "yaml"}:
        output.write(output.encode(context.output, answers))
    return code


async def inspect(
    context: Context, args: Namespace, listing: Listing, get: Callable[[str], Awaitable[M]], table: Callable[[list[M]], list[str]]
) -> int:
    """Show all, in JSON unless another form was asked for; one that was named alone as one message, others as a list."""
    found: list[M] = []

    def done(_: Target, answer: M) -> None:
        found.append(answer)

    chosen = await select.targets(args, listing)
    code = await select.each(chosen, lambda target: get(target.ref), done)
    if found or len(chosen) != 1:
        output.show(context.given_output or "json", found, lambda: table(found), single=select.is_single(args))
    return code
