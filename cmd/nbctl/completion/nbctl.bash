# bash completion for nbctl, written by `python -m nbctl.completion`: do not edit.

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
            run | create | lan | agent | links | image | node | import | export)
                if ((at + 1 < COMP_CWORD)); then
                    verb="$word ${COMP_WORDS[++at]}"
                    break
                fi
                case $word in
                    run) _nbctl_fill -W "process qemu" ;;
                    create) _nbctl_fill -W "process qemu" ;;
                    lan) _nbctl_fill -W "create ls inspect rm connect disconnect impair up down stats" ;;
                    agent) _nbctl_fill -W "ls reports tell barriers traffic" ;;
                    links) _nbctl_fill -W "up down" ;;
                    image) _nbctl_fill -W "ls build import inspect rm" ;;
                    node) _nbctl_fill -W "ls info events audit metrics" ;;
                    import) _nbctl_fill -W "topdl containerlab" ;;
                    export) _nbctl_fill -W "topdl containerlab" ;;
                esac
                return
                ;;
            *) verb=$word; break ;;
        esac
    done
    case $verb in
        "") options="-H --host -o --output -h --help"; kinds=("run create start stop kill rm wait pause unpause update rename exec attach cp ps inspect logs stats top events lan image capture agent up down status diff links verify validate graph import export info audit node version completion") ;;
        "run process") options="-h --help -d --detach -i --interactive -t --tty -e --env --env-file -w --workdir -u --user --name --on --rm --hostname -l --label --lan --gateway --route --control --no-control --sysctl --init --fs -v --volume --cap-add --cap-drop --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" valued="-e --env --env-file -w --workdir -u --user --name --on --hostname -l --label --lan --gateway --route --sysctl --fs -v --volume --cap-add --cap-drop --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" kinds=("commands") ;;
        "run qemu") options="-h --help -d --detach --wait --no-wait -i --interactive -t --tty -e --env --env-file -w --workdir -u --user --name --on --rm --hostname -l --label --lan --gateway --route --control --no-control --sysctl -v --volume --image --kernel --initrd --boot-timeout --append --node --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" valued="-e --env --env-file -w --workdir -u --user --name --on --hostname -l --label --lan --gateway --route --sysctl -v --volume --image --kernel --initrd --boot-timeout --append --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" kinds=("commands") ;;
        "create process") options="-h --help -i --interactive -t --tty -e --env --env-file -w --workdir -u --user --name --on --rm --hostname -l --label --lan --gateway --route --control --no-control --sysctl --init --fs -v --volume --cap-add --cap-drop --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" valued="-e --env --env-file -w --workdir -u --user --name --on --hostname -l --label --lan --gateway --route --sysctl --fs -v --volume --cap-add --cap-drop --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" kinds=("commands") ;;
        "create qemu") options="-h --help -i --interactive -t --tty -e --env --env-file -w --workdir -u --user --name --on --rm --hostname -l --label --lan --gateway --route --control --no-control --sysctl -v --volume --image --kernel --initrd --boot-timeout --append --node --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" valued="-e --env --env-file -w --workdir -u --user --name --on --hostname -l --label --lan --gateway --route --sysctl -v --volume --image --kernel --initrd --boot-timeout --append --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" kinds=("commands") ;;
        "start") options="-h --help -l --label --wait --no-wait -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("containers") ;;
        "stop") options="-h --help -l --label -t --time -H --host -o --output" valued="-l --label -t --time -H --host -o --output" kinds=("containers") ;;
        "kill") options="-h --help -l --label -s --signal -H --host -o --output" valued="-l --label -s --signal -H --host -o --output" kinds=("containers") ;;
        "rm") options="-h --help -l --label -f --force -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("containers") ;;
        "wait") options="-h --help -l --label --ready -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("containers") ;;
        "pause") options="-h --help -l --label -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("containers") ;;
        "unpause") options="-h --help -l --label -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("containers") ;;
        "update") options="-h --help -l --label --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" valued="-l --label --cpus --memory --pids-limit --io-weight --restart -H --host -o --output" kinds=("containers") ;;
        "rename") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=("containers" "") ;;
        "exec") options="-h --help -i --interactive -t --tty -e --env --env-file -w --workdir -u --user -l --label -H --host -o --output" valued="-e --env --env-file -w --workdir -u --user -l --label -H --host -o --output" kinds=("containers" "commands") ;;
        "attach") options="-h --help --no-stdin -H --host -o --output" valued="-H --host -o --output" kinds=("containers") ;;
        "cp") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=("paths" "paths") ;;
        "ps") options="-h --help -l --label -a --all -q --quiet --no-trunc -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("containers") ;;
        "inspect") options="-h --help -l --label -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("containers") ;;
        "logs") options="-h --help -f --follow -t --timestamps --since -n --tail -H --host -o --output" valued="--since -n --tail -H --host -o --output" kinds=("containers") ;;
        "stats") options="-h --help -l --label --no-stream --nics --interval -H --host -o --output" valued="-l --label --interval -H --host -o --output" kinds=("containers") ;;
        "top") options="-h --help --sort --interval -H --host -o --output" valued="--sort --interval -H --host -o --output" kinds=() ;;
        "events") options="-h --help --history --after --type -H --host -o --output" valued="--after --type -H --host -o --output" kinds=() ;;
        "lan create") options="-h --help --subnet --subnet6 --mtu --group --peer --ttl --local -l --label -H --host -o --output" valued="--subnet --subnet6 --mtu --group --peer --ttl -l --label -H --host -o --output" kinds=("") ;;
        "lan ls") options="-h --help -l --label -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("lans") ;;
        "lan inspect") options="-h --help -l --label -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("lans") ;;
        "lan rm") options="-h --help -l --label -f --force -H --host -o --output" valued="-l --label -H --host -o --output" kinds=("lans") ;;
        "lan connect") options="-h --help --ip --mac --name -H --host -o --output" valued="--ip --mac --name -H --host -o --output" kinds=("lans" "containers") ;;
        "lan disconnect") options="-h --help --name -H --host -o --output" valued="--name -H --host -o --output" kinds=("lans" "containers") ;;
        "lan impair") options="-h --help --port --to --from --both --rate --delay --jitter --loss --duplicate --corrupt --reorder --limit -H --host -o --output" valued="--port --rate --delay --jitter --loss --duplicate --corrupt --reorder --limit -H --host -o --output" kinds=("impaired") ;;
        "lan up") options="-h --help --port -H --host -o --output" valued="--port -H --host -o --output" kinds=("lans") ;;
        "lan down") options="-h --help --port -H --host -o --output" valued="--port -H --host -o --output" kinds=("lans") ;;
        "lan stats") options="-h --help -f --follow --interval -H --host -o --output" valued="--interval -H --host -o --output" kinds=("lans") ;;
        "image ls") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=() ;;
        "image build") options="-h --help --name --fresh -H --host -o --output" valued="--name -H --host -o --output" kinds=("debian-12") ;;
        "image import") options="-h --help --format --name -H --host -o --output" valued="--format --name -H --host -o --output" kinds=("files") ;;
        "image inspect") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=("images") ;;
        "image rm") options="-h --help -f --force -H --host -o --output" valued="-H --host -o --output" kinds=("images") ;;
        "capture") options="-h --help -w --write -f --filter -s --snaplen -c --count --size --duration -H --host -o --output" valued="-w --write -f --filter -s --snaplen -c --count --size --duration -H --host -o --output" kinds=("captured") ;;
        "agent ls") options="-h --help -x --experiment -H --host -o --output" valued="-x --experiment -H --host -o --output" kinds=("containers") ;;
        "agent reports") options="-h --help -f --follow -n --tail -x --experiment -H --host -o --output" valued="-n --tail -x --experiment -H --host -o --output" kinds=("containers") ;;
        "agent tell") options="-h --help -x --experiment -H --host -o --output" valued="-x --experiment -H --host -o --output" kinds=("containers" "") ;;
        "agent barriers") options="-h --help -x --experiment -H --host -o --output" valued="-x --experiment -H --host -o --output" kinds=() ;;
        "agent traffic") options="-h --help --interval --no-stream -H --host -o --output" valued="--interval -H --host -o --output" kinds=("" "") ;;
        "up") options="-h --help -f --file --on --dry-run --keep -v --verbose -H --host -o --output" valued="-f --file --on -H --host -o --output" kinds=() ;;
        "down") options="-h --help -f --file --force -v --verbose -H --host -o --output" valued="-f --file -H --host -o --output" kinds=("") ;;
        "status") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=("") ;;
        "diff") options="-h --help -f --file --on -H --host -o --output" valued="-f --file --on -H --host -o --output" kinds=() ;;
        "links up") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=("" "") ;;
        "links down") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=("" "") ;;
        "verify") options="-h --help --save -H --host -o --output" valued="--save -H --host -o --output" kinds=("") ;;
        "validate") options="-h --help -f --file --on -H --host -o --output" valued="-f --file --on -H --host -o --output" kinds=() ;;
        "graph") options="-h --help -f --file --on --to --expand -H --host -o --output" valued="-f --file --on --to -H --host -o --output" kinds=("vtopo ptopo both") ;;
        "import topdl") options="-h --help --skip --name --ptopo -H --host -o --output" valued="--skip --name -H --host -o --output" kinds=("files") ;;
        "import containerlab") options="-h --help --skip -H --host -o --output" valued="--skip -H --host -o --output" kinds=("files") ;;
        "export topdl") options="-h --help --skip -H --host -o --output" valued="--skip -H --host -o --output" kinds=("files") ;;
        "export containerlab") options="-h --help --skip -H --host -o --output" valued="--skip -H --host -o --output" kinds=("files") ;;
        "info") options="-h --help --on -H --host -o --output" valued="--on -H --host -o --output" kinds=() ;;
        "audit") options="-h --help --on -H --host -o --output" valued="--on -H --host -o --output" kinds=() ;;
        "node ls") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=() ;;
        "node info") options="-h --help --on -H --host -o --output" valued="--on -H --host -o --output" kinds=() ;;
        "node events") options="-h --help --history --after --type -H --host -o --output" valued="--after --type -H --host -o --output" kinds=() ;;
        "node audit") options="-h --help --on -H --host -o --output" valued="--on -H --host -o --output" kinds=() ;;
        "node metrics") options="-h --help --on -H --host -o --output" valued="--on -H --host -o --output" kinds=() ;;
        "version") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=() ;;
        "completion") options="-h --help -H --host -o --output" valued="-H --host -o --output" kinds=("bash zsh") ;;
    esac
    case $verb:$previous in
        "run process:--env-file") _nbctl_kind "files"; return ;;
        "run process:-w" | "run process:--workdir") _nbctl_kind "files"; return ;;
        "run process:--on") _nbctl_kind "nodes"; return ;;
        "run process:--lan") _nbctl_kind "lans"; return ;;
        "run process:--fs") _nbctl_kind "host host-ro overlay overlay= rootfs="; return ;;
        "run process:-v" | "run process:--volume") _nbctl_kind "files"; return ;;
        "run process:--restart") _nbctl_kind "no on-failure on-failure: always"; return ;;
        "run qemu:--env-file") _nbctl_kind "files"; return ;;
        "run qemu:-w" | "run qemu:--workdir") _nbctl_kind "files"; return ;;
        "run qemu:--on") _nbctl_kind "nodes"; return ;;
        "run qemu:--lan") _nbctl_kind "lans"; return ;;
        "run qemu:-v" | "run qemu:--volume") _nbctl_kind "files"; return ;;
        "run qemu:--image") _nbctl_kind "images"; return ;;
        "run qemu:--kernel") _nbctl_kind "files"; return ;;
        "run qemu:--initrd") _nbctl_kind "files"; return ;;
        "run qemu:--restart") _nbctl_kind "no on-failure on-failure: always"; return ;;
        "create process:--env-file") _nbctl_kind "files"; return ;;
        "create process:-w" | "create process:--workdir") _nbctl_kind "files"; return ;;
        "create process:--on") _nbctl_kind "nodes"; return ;;
        "create process:--lan") _nbctl_kind "lans"; return ;;
        "create process:--fs") _nbctl_kind "host host-ro overlay overlay= rootfs="; return ;;
        "create process:-v" | "create process:--volume") _nbctl_kind "files"; return ;;
        "create process:--restart") _nbctl_kind "no on-failure on-failure: always"; return ;;
        "create qemu:--env-file") _nbctl_kind "files"; return ;;
        "create qemu:-w" | "create qemu:--workdir") _nbctl_kind "files"; return ;;
        "create qemu:--on") _nbctl_kind "nodes"; return ;;
        "create qemu:--lan") _nbctl_kind "lans"; return ;;
        "create qemu:-v" | "create qemu:--volume") _nbctl_kind "files"; return ;;
        "create qemu:--image") _nbctl_kind "images"; return ;;
        "create qemu:--kernel") _nbctl_kind "files"; return ;;
        "create qemu:--initrd") _nbctl_kind "files"; return ;;
        "create qemu:--restart") _nbctl_kind "no on-failure on-failure: always"; return ;;
        "kill:-s" | "kill:--signal") _nbctl_kind "HUP INT QUIT KILL USR1 USR2 TERM CONT STOP"; return ;;
        "update:--restart") _nbctl_kind "no on-failure on-failure: always"; return ;;
        "exec:--env-file") _nbctl_kind "files"; return ;;
        "exec:-w" | "exec:--workdir") _nbctl_kind "files"; return ;;
        "top:--sort") _nbctl_kind "cpu memory pids name"; return ;;
        "lan impair:--port") _nbctl_kind "containers"; return ;;
        "lan up:--port") _nbctl_kind "containers"; return ;;
        "lan down:--port") _nbctl_kind "containers"; return ;;
        "image import:--format") _nbctl_kind "qcow2 raw"; return ;;
        "capture:-w" | "capture:--write") _nbctl_kind "files"; return ;;
        "up:-f" | "up:--file") _nbctl_kind "files"; return ;;
        "up:--on") _nbctl_kind "files"; return ;;
        "down:-f" | "down:--file") _nbctl_kind "files"; return ;;
        "diff:-f" | "diff:--file") _nbctl_kind "files"; return ;;
        "diff:--on") _nbctl_kind "files"; return ;;
        "verify:--save") _nbctl_kind "files"; return ;;
        "validate:-f" | "validate:--file") _nbctl_kind "files"; return ;;
        "validate:--on") _nbctl_kind "files"; return ;;
        "graph:-f" | "graph:--file") _nbctl_kind "files"; return ;;
        "graph:--on") _nbctl_kind "files"; return ;;
        "graph:--to") _nbctl_kind "files"; return ;;
        "graph:-o" | "graph:--output") _nbctl_kind "svg png dot mermaid"; return ;;
        "info:--on") _nbctl_kind "nodes"; return ;;
        "audit:--on") _nbctl_kind "nodes"; return ;;
        "node info:--on") _nbctl_kind "nodes"; return ;;
        "node audit:--on") _nbctl_kind "nodes"; return ;;
        "node metrics:--on") _nbctl_kind "nodes"; return ;;
        *:-o | *:--output) _nbctl_fill -W "table json yaml name"; return ;;
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
