# Shared by all recipes: options in Kaldi's manner, numbered stages. Set `usage` and source it; then set other defaults, among them
# `scenario` and `model` where the user may choose one, call `parse_options "$@"` and `run_recipe SCENARIO OVERRIDE...`.
#
#   stages: 1 data  2 tokens  3 initial model  4 adapt  5 decode  6 score  7 report
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

stage=1
stop_stage=7
methods="initial ft fta ewc ihr"
seeds="1"
orders=""
ngpu=0
jobs=1
exp=exp
data_dir=""
scenario=""
model=""
scenario_name=""
quick=false
train_initial=false
prepares=true # whether there are corpora to prepare; images are read when they are needed
dry_run=false
overrides=()

fail() { echo "run.sh: $*" >&2; exit 2; }

show_usage() {
    cat <<USAGE
$usage
Options (both --stop_stage and --stop-stage spellings work, --name value and --name=value):
  --stage N, --stop_stage N   first and last stage: 1 data, 2 tokens, 3 initial model, 4 adapt, 5 decode, 6 score, 7 report
  --methods "ft fta ewc ihr"  names under conf/method (default: $methods)
  --seeds "1 2 3"             each seed has an initial model of its own (default: $seeds)
  --orders "A-E"              of the domains: how many (5), or names under scenario.orders (default: as listed)
  --jobs N                    runs at the same time, one process each (default: $jobs)
  --ngpu N                    0: CPU; 1: one GPU; more: torchrun (default: $ngpu)
  --exp DIR                   all output goes below it (default: $exp)
  --data_dir DIR              recorded corpora, where the recipe needs them
  --quick                     a small run that only shows that everything works
  --train-initial             train the initial model here, where the recipe comes with a trained one
  --dry_run                   print the commands of the stages, run nothing (all stages at once are one command: asrcl run)
Anything with a = that is not an option is a Hydra override: train.adapt.epochs=4 methods.ihr.tau=2
USAGE
}

number() { [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 $2: not a whole number"; }

quoted() { # the command as it could be typed
    local word line=""
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_./=:,+@%-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        line+=" $word"
    done
    echo "${line# }"
}

hydra() { # a folder's name as Hydra reads it: quoted where its grammar would take a part of it for something else
    local value=$1 held="" slashes="" char i
    local plain='^[A-Za-z_./][A-Za-z0-9_ ./:+@%-]*$' words='^(null|true|false|nan|inf)$'
    if [[ "$value" =~ $plain ]] && [[ "$value" != *" " ]] && ! [[ "${value,,}" =~ $words ]]; then
        printf %s "$value"
        return
    fi
    for ((i = 0; i < ${#value}; i++)); do
        char=${value:i:1}
        if [ "$char" = "\\" ]; then slashes+=$char; continue; fi
        if [ "$char" = "'" ] || [ "${value:i:2}" = '${' ]; then slashes+="$slashes\\"; fi
        held+=$slashes$char
        slashes=""
    done
    printf "'%s'" "$held$slashes$slashes"
}

parse_options() {
    while [ $# -gt 0 ]; do
        local name value
        case "$1" in
            -h | --help) show_usage; exit 0 ;;
            --quick | --dry_run | --dry-run | --train_initial | --train-initial)
                name=${1#--}; name=${name//-/_}
                printf -v "$name" true
                shift; continue ;;
            --*=*) name=${1%%=*}; value=${1#*=}; shift ;;
            --*)
                [ $# -ge 2 ] && [[ "$2" != --* ]] || fail "$1: needs a value, or is no option; see --help"
                name=$1; value=$2; shift 2 ;;
            scenario.name=*) scenario_name=${1#*=}; overrides+=("$1"); shift; continue ;;
            exp=* | data_dir=* | scenario=*) name=${1%%=*}; value=${1#*=}; shift ;;
            config_dir=*)
                [ -d "${1#*=}" ] || fail "$1: no such folder"
                overrides+=("config_dir=$(cd "${1#*=}" && pwd)"); shift; continue ;;
            *=*) overrides+=("$1"); shift; continue ;;
            *) fail "$1: neither an option nor an override (group=choice); see --help" ;;
        esac
        name=${name#--}; name=${name//-/_}
        set_option "$name" "$value"
    done
    [ "$stage" -le "$stop_stage" ] || fail "--stage $stage --stop_stage $stop_stage: nothing to do"
}

set_option() { # paths are relative to where the user is, not to the repository
    case "$1" in
        stage | stop_stage | ngpu | jobs) number "--$1" "$2" ;;
        exp | data_dir) # as typed where that works from the repository too: reports of two machines then name the same folder
            [ "$1" = exp ] || [ -d "$2" ] || fail "--data_dir $2: no such folder"
            [[ "$2" = /* ]] || [ "$PWD" = "$repository" ] || set -- "$1" "$PWD/$2" ;;
        scenario) [ -n "$scenario" ] || fail "--scenario: this recipe has only one" ;;
        model)
            [ -n "$model" ] || fail "--model: this recipe has none to choose; model=NAME takes a configuration of conf/model"
            [ ! -d "$2" ] || set -- "$1" "$(cd "$2" && pwd)" ;;
        methods | seeds | orders) ;;
        *) fail "--$1: no such option; see --help" ;;
    esac
    [ -n "$2" ] || fail "--$1: needs a value"
    printf -v "$1" %s "$2"
}

asrcl() {
    local command=("$repository/.venv/bin/asrcl")
    # decode too: what several processes have trained, only as many of them find again
    if [ "$ngpu" -gt 1 ] && [[ " train adapt decode " == *" $1 "* ]]; then
        command=("$repository/.venv/bin/torchrun" --standalone --nproc_per_node "$ngpu" -m asrcl.cli)
    fi
    if $dry_run; then
        quoted "${command[@]#"$repository/.venv/bin/"}" "$@"
    else
        "${command[@]}" "$@"
    fi
}

run_stage() { # number, title, command...
    local number=$1 title=$2
    shift 2
    if [ "$stage" -le "$number" ] && [ "$stop_stage" -ge "$number" ]; then
        echo "== stage $number: $title ($((SECONDS / 60)) min $((SECONDS % 60)) s)"
        "$@"
    fi
}

run_recipe() { # scenario, overrides of the recipe...
    local scenario=$1 device=cpu
    shift
    [ "$ngpu" -eq 0 ] || device=cuda
    local settings=("scenario=$scenario" "exp=$(hydra "$exp")" "device=$device" "launcher.jobs=$jobs" "$@" ${overrides[@]+"${overrides[@]}"})
    if $train_initial; then settings+=("++scenario.initial.models=null"); fi
    [ -z "$data_dir" ] || settings+=("data_dir=$(hydra "$data_dir")")
    local seeded=(--seeds "$seeds")
    [ -z "$orders" ] || seeded+=(--orders "$orders")
    $dry_run || bash "$repository/tools/setup.sh"
    if [ "$stage" -eq 1 ] && [ "$stop_stage" -eq 7 ] && [ "$ngpu" -le 1 ] && ! $dry_run; then
        # all stages in one process, whose workers import what they need once
        asrcl run --methods "$methods" "${seeded[@]}" "${settings[@]}"
    else
        if $prepares; then
            run_stage 1 "data" asrcl prepare --stage data "${settings[@]}"
            run_stage 2 "tokens" asrcl prepare --stage tokens "${settings[@]}"
        fi
        run_stage 3 "initial model" asrcl train "${seeded[@]}" "${settings[@]}"
        run_stage 4 "adapt" asrcl adapt --methods "$methods" "${seeded[@]}" "${settings[@]}"
        run_stage 5 "decode" asrcl decode --methods "$methods" "${seeded[@]}" "${settings[@]}"
        run_stage 6 "score" asrcl score "$exp/${scenario_name:-$scenario}"
        run_stage 7 "report" asrcl report "$exp/${scenario_name:-$scenario}"
    fi
    local took="$((SECONDS / 60)) min $((SECONDS % 60)) s"
    if $dry_run; then echo "== done ($took)"; else echo "== done ($took; $("$repository/.venv/bin/python" "$repository/tools/machine_speed.py"))"; fi
}
