"""Completion for shells, made from the parsers: ``python -m nbctl.completion`` writes the files beside this module again.

Names of containers and LANs are asked of the node while one types.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from nbctl import values
from nbctl.commands.topology import PICTURES
from nbctl.parser import NOUNS, OUTPUTS, VERBS, build, find_command

FILES = {"bash": "nbctl.bash", "zsh": "_nbctl"}
_KIND_BY_METAVAR = {
    "CONTAINER": "containers",
    "LAN": "lans",
    "NODE": "nodes",
    "IMAGE": "images",
    "LAN[,KEY=VALUE]...": "lans",
    "[reset|show] LAN": "impaired",
    "LAN|CONTAINER[:NIC]": "captured",
    "CONTAINER[:NIC]": "containers",
    "SRC": "paths",
    "DST": "paths",
    "SRC:DST[:ro]": "files",
    "FILE": "files",
    "DIR": "files",
    "VTOPO": "files",
    "PTOPO": "files",
    "ADDR": "files",
}
_WORDS_BY_METAVAR = {
    "FORM": " ".join(OUTPUTS),
    "PICTURE": " ".join(PICTURES),
    "MODE": "host host-ro overlay overlay= rootfs=",
    "POLICY": "no on-failure on-failure: always",
    "SIG": "HUP INT QUIT KILL USR1 USR2 TERM CONT STOP",
    "SHELL": " ".join(FILES),
    "RECIPE": "debian-12",
}
assert all(mode in _WORDS_BY_METAVAR["MODE"] for mode in values.FS_MODES)


class Option(NamedTuple):
    """An option of a verb; without a metavar it takes no value."""

    names: list[str]
    metavar: str
    words: str
    help: str
    is_repeatable: bool


class Shape(NamedTuple):
    """What can follow a verb; ``positionals`` are the kinds of things, the last for all that follow."""

    options: list[Option]
    positionals: list[str]


def shape(verb: str) -> Shape:
    """What the verb's parser takes."""
    options, positionals = [], []
    for action in build(verb, find_command(verb))._actions:
        metavar = str(action.metavar or action.dest.upper())
        words = " ".join(map(str, action.choices)) if action.choices else _WORDS_BY_METAVAR.get(metavar, "")
        if action.option_strings:
            is_repeatable = isinstance(action, argparse._AppendAction)
            takes_value = action.nargs != 0
            options.append(
                Option(
                    list(action.option_strings),
                    metavar if takes_value else "",
                    words if takes_value else "",
                    (action.help or "").replace("%%", "%"),
                    is_repeatable,
                )
            )
        else:
            positionals.append(words or _KIND_BY_METAVAR.get(metavar, "commands" if metavar.endswith("CMD") else ""))
    return Shape(options, positionals)


def generate(shell: str) -> str:
    """The completion file of ``bash`` or ``zsh``."""
    return _GENERATORS[shell]()


def seconds(noun: str) -> str:
    """The words that can follow a noun."""
    return " ".join(verb.partition(" ")[2] for verb in VERBS if verb.startswith(f"{noun} "))


def firsts() -> list[str]:
    """The words a command line can begin with."""
    return list(dict.fromkeys(verb.partition(" ")[0] for verb in VERBS))


# ---------------------------------------------------------------- bash

_BASH_HEAD = r"""# bash completion for nbctl, written by `python -m nbctl.completion`: do not edit.

_nbctl_fill() {
    mapfile -t COMPREPLY < <(compgen "$@" -- "$cur")
}

_nbctl_kind() {
    case $1 in
        "") ;;
        containers) _nbctl_fill -W "$(nbctl "${host[@]}" ps -a -o name 2>/dev/null)" ;;
        images) _nbctl_fill -W "$(nbctl "${host[@]}" image ls -o name 2>/dev/null)" ;;
        lans) _nbctl_fill -W "$(nbctl "${host[@]}" lan ls -o name 2>/dev/null)" ;;
        nodes) _nbctl_fill -W "$(nbctl "${host[@]}" node ls -o name 2>/dev/null | tail -n +2)" ;;
        impaired) _nbctl_fill -W "reset show $(nbctl "${host[@]}" lan ls -o name 2>/dev/null)" ;;
        captured) _nbctl_fill -W "$(nbctl "${host[@]}" lan ls -o name 2>/dev/null; nbctl "${host[@]}" ps -a -o name 2>/dev/null)" ;;
        files) compopt -o filenames; _nbctl_fill -f ;;
        paths)
            compopt -o filenames -o nospace
            _nbctl_fill -f -W "$(nbctl "${host[@]}" ps -a -o name 2>/dev/null | sed 's/$/:/')"
            ;;
        commands) _nbctl_fill -c ;;
        *) _nbctl_fill -W "$1" ;;
    esac
}

_nbctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local verb="" options="" valued="" kinds=() host=() word at count=0
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        case $word in
            -H | --host) host=(-H "${COMP_WORDS[++at]}") ;;
            -o | --output) ((++at)) ;;
            -*) ;;
@NOUNS@
            *) verb=$word; break ;;
        esac
    done
    case $verb in
        "") options="-H --host -o --output -h --help"; kinds=("@FIRSTS@") ;;
@VERBS@
    esac
    case $verb:$previous in
@VALUES@
        *:-o | *:--output) _nbctl_fill -W "@OUTPUTS@"; return ;;
        *:-H | *:--host) _nbctl_kind files; return ;;
    esac
    [[ " $valued " == *" $previous "* ]] && return
    for ((++at; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        if [[ " $valued " == *" $word "* ]]; then
            ((++at))
        elif [[ $word != -* ]]; then
            ((++count))
        elif [[ $word == -- && ${kinds[count]} == commands ]]; then
            options=""
        fi
    done
    if ((count >= ${#kinds[@]})); then
        count=$((${#kinds[@]} - 1))
        if ((count >= 0)) && [[ ${kinds[count]} == commands ]]; then
            _nbctl_kind files
            return
        fi
    fi
    if [[ $cur == -* ]]; then
        _nbctl_fill -W "$options"
    elif ((count >= 0)); then
        _nbctl_kind "${kinds[count]}"
    fi
}

complete -F _nbctl nbctl
"""


def _bash() -> str:
    text = _BASH_HEAD
    for mark, lines in (("NOUNS", _bash_nouns()), ("VERBS", _bash_verbs()), ("VALUES", _bash_values())):
        text = text.replace(f"@{mark}@", "\n".join(lines))
    return text.replace("@FIRSTS@", " ".join(firsts())).replace("@OUTPUTS@", " ".join(OUTPUTS))


def _bash_nouns() -> Iterator[str]:
    yield f"            {' | '.join(NOUNS)})"
    yield "                if ((at + 1 < COMP_CWORD)); then"
    yield '                    verb="$word ${COMP_WORDS[++at]}"'
    yield "                    break"
    yield "                fi"
    yield "                case $word in"
    yield from (f'                    {noun}) _nbctl_fill -W "{seconds(noun)}" ;;' for noun in NOUNS)
    yield "                esac"
    yield "                return"
    yield "                ;;"


def _bash_verbs() -> Iterator[str]:
    for verb in VERBS:
        options, positionals = shape(verb)
        names = " ".join(name for option in options for name in option.names)
        valued = " ".join(name for option in options if option.metavar for name in option.names)
        kinds = " ".join(f'"{kind}"' for kind in positionals)
        yield f'        "{verb}") options="{names}" valued="{valued}" kinds=({kinds}) ;;'


def _bash_values() -> Iterator[str]:
    for verb in VERBS:
        for option in shape(verb).options:
            kind = option.words or _KIND_BY_METAVAR.get(option.metavar, "")
            if kind and option.metavar not in {"FORM", "ADDR"}:
                pattern = " | ".join(f'"{verb}:{name}"' for name in option.names)
                yield f'        {pattern}) _nbctl_kind "{kind}"; return ;;'


# ---------------------------------------------------------------- zsh

_ZSH = r"""#compdef nbctl
# zsh completion for nbctl, written by `python -m nbctl.completion`: do not edit.

_nbctl_containers() {
    local -a names
    names=(${(f)"$(nbctl $host ps -a -o name 2>/dev/null)"})
    _describe -t containers container names "$@"
}

_nbctl_images() {
    local -a names
    names=(${(f)"$(nbctl $host image ls -o name 2>/dev/null)"})
    _describe -t images image names "$@"
}

_nbctl_lans() {
    local -a names
    names=(${(f)"$(nbctl $host lan ls -o name 2>/dev/null)"})
    _describe -t lans LAN names "$@"
}

_nbctl_nodes() {
    local -a names
    names=(${(f)"$(nbctl $host node ls -o name 2>/dev/null | tail -n +2)"})
    _describe -t nodes node names "$@"
}

_nbctl_impaired() {
    _alternative 'verbs:what to do:(reset show)' 'lans:LAN:_nbctl_lans'
}

_nbctl_captured() {
    _alternative 'lans:LAN:_nbctl_lans' 'containers:container:_nbctl_containers'
}

_nbctl_paths() {
    _alternative 'files:file:_files' 'containers:container:_nbctl_containers -S :'
}

_nbctl() {
    local -a host nouns
    local at verb
    nouns=(@NOUNS@)
    for ((at = 2; at < CURRENT; at++)); do
        case $words[at] in
            -H | --host) ((at++)); host=(-H $words[at]) ;;
            -o | --output) ((at++)) ;;
            -*) ;;
            *)
                verb=$words[at]
                if (($nouns[(Ie)$verb])); then
                    ((at + 1 < CURRENT)) || break
                    ((at++))
                    verb+=" $words[at]"
                fi
                break
                ;;
        esac
    done
    if [[ -z $verb ]]; then
        _arguments -s @GLOBAL@ @FIRSTS@
        return
    fi
    if ((at < CURRENT)); then
        shift $((at - 1)) words
        ((CURRENT -= at - 1))
    fi
    case $verb in
@SECONDS@
@VERBS@
    esac
}

_nbctl "$@"
"""


def _zsh() -> str:
    first_help = {name: NOUNS.get(name) or VERBS[name].summary for name in firsts()}
    marks = {
        "NOUNS": " ".join(NOUNS),
        "GLOBAL": " ".join(_zsh_option(option) for option in shape("version").options),
        "FIRSTS": _quoted("1:verb:((" + " ".join(f'{name}\\:"{text}"' for name, text in first_help.items()) + "))"),
        "SECONDS": "\n".join(f"        {noun}) _values verb {_zsh_seconds(noun)} ;;" for noun in NOUNS),
        "VERBS": "\n".join(_zsh_verbs()),
    }
    text = _ZSH
    for mark, value in marks.items():
        text = text.replace(f"@{mark}@", value)
    return text


def _zsh_seconds(noun: str) -> str:
    return " ".join(_quoted(f"{second}[{VERBS[f'{noun} {second}'].summary}]") for second in seconds(noun).split())


def _quoted(text: str) -> str:
    """A word for zsh, whatever it holds."""
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_verbs() -> Iterator[str]:
    for verb in VERBS:
        options, positionals = shape(verb)
        yield f'        "{verb}")'
        yield "            _arguments -s \\"
        for option in options:
            yield f"                {_zsh_option(option)} \\"
        for index, kind in enumerate(positionals, 1):
            yield f"                {_zsh_positional(kind, index, is_last=index == len(positionals))} \\"
        yield "                && return"
        yield "            ;;"


def _zsh_option(option: Option) -> str:
    explained = option.help.replace("[", "(").replace("]", ")").replace(":", "\\:")
    value = ""
    if option.metavar:
        shown = option.metavar.partition("[")[0].replace(":", " ")
        value = f":{shown}:{_zsh_action(option.words or _KIND_BY_METAVAR.get(option.metavar, ''))}"
    others = f"({' '.join(option.names)})" if len(option.names) > 1 and not option.is_repeatable else ""
    return " ".join(_quoted(f"{'*' * option.is_repeatable}{others}{name}[{explained}]{value}") for name in option.names)


def _zsh_positional(kind: str, index: int, *, is_last: bool) -> str:
    if kind == "commands":
        return "'*::program: _normal'"
    place = "*" if is_last and kind in {"containers", "lans", "images", "impaired"} else index
    return f"'{place}:{kind.partition(' ')[0] or 'word'}:{_zsh_action(kind)}'"


_ZSH_ACTIONS = {
    "files": "_files",
    **{kind: f"_nbctl_{kind}" for kind in ("containers", "lans", "nodes", "images", "paths", "impaired", "captured")},
}


def _zsh_action(kind: str) -> str:
    if not kind:
        return " "
    return _ZSH_ACTIONS.get(kind, f"({kind})")


_GENERATORS: dict[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh}


def rewrite() -> None:
    """Write the files beside this module."""
    for shell, name in FILES.items():
        (Path(__file__).parent / name).write_text(generate(shell), encoding="utf-8")
