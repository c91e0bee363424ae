"""Pictures of topologies: text for Graphviz or Mermaid. Pure; :func:`render` alone runs a program.

Many elements that differ only in their number (a range in the file) are drawn as one stack, so that a picture fits a page.
A LAN of two is a line, a larger one a small bar that its members hang on.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nestbed.errors import HostLacks, InvalidArgument
from nestbed.experiment import quantities
from nestbed.experiment.plan import Plan
from nestbed.experiment.topology import Element, TopoLan

STACK_MIN = 7
"""Elements of one range from which on they are drawn as a stack."""
LOOPS_MAX = 1
"""Ways around in a topology that is drawn from left to right."""
_RENDER_SECONDS = 60

_FONT = "Helvetica"
_FILL = {"process": "#e8f0fe", "qemu": "#fce8d5", "machine": "#e6f4ea"}
_LINE = {"process": "#3b6fb6", "qemu": "#b8621b", "machine": "#2e7d4f"}
_SHAPE = {"process": "box", "qemu": "box3d", "machine": "box"}
_KIND = {"process": "", "qemu": "VM", "machine": "machine"}


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One symbol: an element, or a stack of ``count`` of them."""

    id: str
    element: Element
    title: str
    count: int
    node: str


def draw(plan: Plan, what: str, *, expand: bool = False) -> str:
    """The picture as text for Graphviz; with ``expand`` every element for itself."""
    if what == "ptopo":
        return _ptopo(plan)
    symbols, by_element = _symbols(plan, by_node=what == "both", expand=expand)
    members = {lan.name: _members(lan.name, by_element) for lan in plan.lans.values()}
    body = _in_clusters(plan, symbols, members) if what == "both" else [_symbol(symbol) for symbol in symbols]
    steps = {} if what == "both" else _steps(members)
    for lan in plan.lans.values():
        body += _lan(lan.lan, members[lan.name], steps, spans=len(_places(members[lan.name])) > 1)
    return _graph(plan.name, body, layout="dot" if what == "both" or steps else _layout(len(symbols) + len(plan.lans)), is_long=bool(steps))


def mermaid(plan: Plan, what: str, *, expand: bool = False) -> str:
    """The picture as text for Mermaid."""
    lines = ["graph LR"]
    if what == "ptopo":
        lines += [f"  {_mermaid_id(name)}[{_quoted(name)}]" for name in plan.nodes]
        lines += [f"  {_mermaid_id(words.vm.host)} --> {_mermaid_id(name)}" for name, words in plan.nodes.items() if words.vm]
        return "\n".join(lines) + "\n"
    symbols, by_element = _symbols(plan, by_node=what == "both", expand=expand)
    ids = {symbol.id: f"e{index}" for index, symbol in enumerate(symbols)}
    for node in plan.nodes if what == "both" else [""]:
        here = [symbol for symbol in symbols if symbol.node == node]
        if node and here:
            lines.append(f"  subgraph {_mermaid_id(node)}[{_quoted(node)}]")
        lines += [f"    {ids[symbol.id]}[{_quoted(_title(symbol, '<br/>'))}]" for symbol in here]
        if node and here:
            lines.append("  end")
    for number, lan in enumerate(plan.lans.values()):
        members = _members(lan.name, by_element)
        label = _quoted("<br/>".join(_lan_label(lan.lan)))
        if len(members) == 2:
            lines.append(f"  {ids[members[0][0].id]} ---|{label}| {ids[members[1][0].id]}")
        else:
            lines.append(f"  l{number}([{label}])")
            lines += [f"  {ids[symbol.id]} --- l{number}" for symbol, _ in members]
    return "\n".join(lines) + "\n"


def render(text: str, form: str) -> bytes:
    """Graphviz's picture of ``text`` as ``svg`` or ``png``.

    Raises:
        HostLacks: Graphviz is not installed, or does not finish within a minute.
    """
    program = shutil.which("dot")
    if program is None:
        raise HostLacks("there is no Graphviz on this machine", reason="NO_GRAPHVIZ", remedy="apt-get install graphviz, or ask for -o dot")
    try:
        done = subprocess.run(
            [program, f"-T{form}", "-Gdpi=144"], input=text.encode(), capture_output=True, timeout=_RENDER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise HostLacks(
            f"Graphviz drew for more than {_RENDER_SECONDS} s", reason="TOO_LARGE_TO_DRAW", remedy="leave --expand out, or ask for -o dot"
        ) from error
    if done.returncode != 0:
        raise InvalidArgument(
            f"Graphviz refuses the picture: {done.stderr.decode(errors='replace').strip()[:200]}",
            reason="GRAPHVIZ_FAILED",
            remedy="ask for -o dot and see what it holds",
        )
    return done.stdout


def _layout(things: int) -> str:
    return "neato" if things <= 150 else "sfdp"


def _steps(members: Mapping[str, Sequence[tuple[_Drawn, str]]]) -> dict[str, int]:
    """How many steps each symbol and LAN is from one end, in a topology that is nearly a tree: it is drawn from left to right. Nothing for
    another one, which has no direction.
    """
    near: dict[str, list[str]] = {}
    for lan, its in members.items():
        for symbol, _ in its:
            near.setdefault(symbol.id, []).append(f"l:{lan}")
            near.setdefault(f"l:{lan}", []).append(symbol.id)
    links = sum(len(its) for its in near.values()) // 2
    if not near or links > len(near) + LOOPS_MAX:
        return {}
    found: dict[str, int] = {}
    for start in near:
        if start not in found:
            end = list(_reached(near, list(_reached(near, start))[-1]))[-1]
            found |= _reached(near, end)
            found |= {leaf: 0 for lan in near[end] for leaf in near[lan] if len(near[leaf]) == 1}  # beside it, not opposite
    return found


def _reached(near: Mapping[str, Sequence[str]], start: str) -> dict[str, int]:
    """All that can be reached, the nearest first, with the number of steps."""
    found = {start: 0}
    queue = [start]
    for here in queue:
        for other in near[here]:
            if other not in found:
                found[other] = found[here] + 1
                queue.append(other)
    return found


def _graph(name: str, body: Iterable[str], *, layout: str, is_long: bool = False) -> str:
    head = [
        f"graph {_quoted(name)} {{",
        f'  graph [layout={layout}, overlap=prism, overlap_scaling=-4, sep="+10", esep="+4", splines=true, bgcolor=white, pad=0.15,',
        "         nodesep=0.35, ranksep=0.55, outputorder=edgesfirst, start=2011, model=subset, forcelabels=true,",
        f'         fontname="{_FONT}", fontsize=11{", rankdir=LR" if is_long else ""}]',
        f'  node [fontname="{_FONT}", fontsize=11, style="filled,rounded", penwidth=1.1, margin="0.12,0.06", height=0.36]',
        f'  edge [fontname="{_FONT}", fontsize=8.5, color="#6b7280", fontcolor="#4b5563", penwidth=1.0, len=1.5]',
    ]
    return "\n".join([*head, *body, "}"]) + "\n"


def _symbols(plan: Plan, *, by_node: bool, expand: bool) -> tuple[list[_Drawn], dict[str, _Drawn]]:
    groups: dict[tuple[object, ...], list[Element]] = {}
    for element in plan.topology.elements.values():
        node = plan.elements[element.name].node if by_node else ""
        lans = tuple(nic.lan for nic in element.nics)
        groups.setdefault((element.path, lans, node) if not expand else (element.name, node), []).append(element)
    symbols: list[_Drawn] = []
    by_element = {}
    for key, elements in groups.items():
        node = str(key[-1])
        stacks = [elements] if len(elements) >= STACK_MIN else [[element] for element in elements]
        for stack in stacks:
            symbol = _Drawn(f"e:{stack[0].name}", stack[0], _stack_title(stack), len(stack), node)
            symbols.append(symbol)
            by_element.update(dict.fromkeys((element.name for element in stack), symbol))
    order = {name: index for index, name in enumerate(plan.topology.elements)}
    return sorted(symbols, key=lambda symbol: order[symbol.element.name]), by_element


def _stack_title(stack: Sequence[Element]) -> str:
    if len(stack) == 1:
        return stack[0].name
    return f"{stack[0].name} … {stack[-1].name}"


def _symbol(symbol: _Drawn) -> str:
    kind = symbol.element.words.kind
    stacked = ", peripheries=2" if symbol.count > 1 else ""
    shape = "ellipse" if kind == "process" and symbol.element.forwards else _SHAPE[kind]
    style = ', style="filled"' if shape != "box" else (', style="filled"' if kind == "machine" else "")
    return (
        f"  {_quoted(symbol.id)} [label={_quoted(_title(symbol, chr(10)))}, shape={shape}{style}, "
        f'fillcolor="{_FILL[kind]}", color="{_LINE[kind]}"{stacked}]'
    )


def _title(symbol: _Drawn, separator: str) -> str:
    note = [f"{symbol.count} of them"] if symbol.count > 1 else []
    kind = _KIND[symbol.element.words.kind]
    return separator.join([symbol.title, *([kind] if kind else []), *note])


def _members(lan: str, by_element: dict[str, _Drawn]) -> list[tuple[_Drawn, str]]:
    """Each symbol on the LAN once per NIC of its first element, with the last part of its address there."""
    found = []
    for symbol in {drawn.id: drawn for drawn in by_element.values()}.values():
        for nic in symbol.element.nics:
            if nic.lan == lan:
                address = nic.addresses[0].partition("/")[0] if nic.addresses else ""
                tail = address.rpartition(":" if ":" in address else ".")[2]
                found.append((symbol, f".{tail}" if tail and symbol.count == 1 and ":" not in address else ""))
    return found


def _lan_label(lan: TopoLan) -> list[str]:
    words = lan.words
    shaping = [
        *([quantities.show_rate(words.rate)] if words.rate else []),
        *([quantities.show_duration(words.delay)] if words.delay else []),
        *([f"loss {quantities.show_fraction(words.loss)}"] if words.loss else []),
    ]
    return [lan.name, *filter(None, (lan.subnet, lan.subnet6)), *([", ".join(shaping)] if shaping else [])]


def _lan(lan: TopoLan, members: Sequence[tuple[_Drawn, str]], steps: Mapping[str, int], *, spans: bool) -> list[str]:
    """Edges lead away from where ``steps`` are counted from."""
    label = _lan_label(lan)
    line = ', style=dashed, color="#b91c1c"' if spans else ""
    if not _has_hub(members):
        (one, tail), (other, head) = sorted(members, key=lambda member: steps.get(member[0].id, 0))
        ends = f"taillabel={_quoted(tail)}, headlabel={_quoted(head)}, labeldistance=1.4, len=2.2"
        return [f"  {_quoted(one.id)} -- {_quoted(other.id)} [label={_quoted(chr(10).join(label))}, {ends}{line}]"]
    hub = _quoted(f"l:{lan.name}")
    edge = "#b91c1c" if spans else "#9ca3af"
    look = f'shape=box, style="filled,rounded", fillcolor="#f3f4f6", color="{edge}", fontsize=9, margin="0.08,0.03", height=0.2'
    bar = f"  {hub} [label={_quoted(chr(10).join(label))}, {look}]"
    lines = [bar]
    for symbol, address in members:
        leads_here = steps.get(symbol.id, 0) <= steps.get(f"l:{lan.name}", 0)
        ends = f"{_quoted(symbol.id)} -- {hub}" if leads_here else f"{hub} -- {_quoted(symbol.id)}"
        lines.append(f"  {ends} [{'taillabel' if leads_here else 'headlabel'}={_quoted(address)}, labeldistance=1.2{line}]")
    return lines


def _in_clusters(plan: Plan, symbols: Sequence[_Drawn], members: Mapping[str, Sequence[tuple[_Drawn, str]]]) -> list[str]:
    """Each node with what it has: elements, and LANs that none but they are on. Where there is no such LAN all lines leave downwards."""
    lines: list[str] = []
    for number, (node, words) in enumerate(plan.nodes.items()):
        title = f"{node} (VM on {words.vm.host})" if words.vm else node
        hubs = [lan for lan, its in members.items() if _has_hub(its) and _places(its) == {node}]
        look = f'labeljust=l; labelloc={"b" if hubs else "t"}; style="rounded,filled"; color="#9ca3af"; fillcolor="#fafafa"; margin=14;'
        lines += [f"  subgraph cluster_{number} {{", f"    label={_quoted(title)}; {look}"]
        here = [symbol for symbol in symbols if symbol.node == node]
        lines += ["  " + _symbol(symbol) for symbol in here]
        if not here:
            lines.append(f'    {_quoted(f"empty:{node}")} [label="no element", shape=plaintext, style="", fontsize=9]')
        lines += [*(f"    {_quoted(f'l:{lan}')};" for lan in hubs), "  }"]
    return lines


def _places(members: Sequence[tuple[_Drawn, str]]) -> set[str]:
    return {symbol.node for symbol, _ in members}


def _has_hub(members: Sequence[tuple[_Drawn, str]]) -> bool:
    """Whether the LAN is more than a line between two."""
    on = [symbol for symbol, _ in members]
    return not (len(on) == 2 and on[0].count == on[1].count == 1 and on[0] is not on[1])


def _ptopo(plan: Plan) -> str:
    held: dict[str, int] = dict.fromkeys(plan.nodes, 0)
    for element in plan.elements.values():
        held[element.node] += 1
    body = []
    for name, words in plan.nodes.items():
        room = words.capacity.elements
        count = f"{held[name]}{'' if room is None else f' of {room}'} element{'' if held[name] == 1 and room is None else 's'}"
        label = "\n".join([name, *([] if words.address == "local" else [words.address]), count])
        shape = "box3d" if words.vm else "box"
        body.append(
            f'  {_quoted(f"n:{name}")} [label={_quoted(label)}, shape={shape}, style="filled", fillcolor="#f3f4f6", color="#4b5563"]'
        )
    machines = [name for name, words in plan.nodes.items() if not words.vm]
    if len(plan.nodes) > 1:
        body.append(
            '  underlay [label="underlay", shape=box, style="filled,rounded", fillcolor="#e5e7eb", color="#9ca3af", fontsize=9, height=0.2]'
        )
        body += [f"  {_quoted(f'n:{name}')} -- underlay" for name in machines]
    body += [
        f'  {_quoted(f"n:{words.vm.host}")} -- {_quoted(f"n:{name}")} [style=dotted, label="runs"]'
        for name, words in plan.nodes.items()
        if words.vm
    ]
    return _graph(plan.name, body, layout="dot")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _mermaid_id(name: str) -> str:
    return "n_" + name.replace("-", "_")
