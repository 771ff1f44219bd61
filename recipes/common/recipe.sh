# Shared by all recipes: options in Kaldi's manner, numbered stages. Source it; set `scenario`, `defaults` and `usage` before.
#
#   stages: 1 data  2 tokens  3 initial model  4 adapt  5 decode  6 score  7 report
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

stage=1
stop_stage=7
methods="initial ft fta ewc ihr"
seeds="1"
ngpu=0
jobs=1
exp=exp
data_dir=""
quick=false
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
  --jobs N                    runs at the same time, one process each (default: $jobs)
  --ngpu N                    0: CPU; 1: one GPU; more: torchrun (default: $ngpu)
  --exp DIR                   all output goes below it (default: $exp)
  --data_dir DIR              recorded corpora, where the recipe needs them
  --quick                     a small run that only shows that everything works
  --dry_run                   print the commands, run nothing
Anything with a = that is not an option is a Hydra override: train.adapt.epochs=4 methods.ihr.tau=2
USAGE
}

number() { [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 $2: not a whole number"; }

parse_options() {
    while [ $# -gt 0 ]; do
        local name value
        case "$1" in
            -h | --help) show_usage; exit 0 ;;
            --quick | --dry_run | --dry-run)
                name=${1#--}; name=${name//-/_}
                printf -v "$name" true
                shift; continue ;;
            --*=*) name=${1%%=*}; value=${1#*=}; shift ;;
            --*) [ $# -ge 2 ] || fail "$1: needs a value"; name=$1; value=$2; shift 2 ;;
            *=*) overrides+=("$1"); shift; continue ;;
            *) fail "$1: neither an option nor an override (group=choice); see --help" ;;
        esac
        name=${name#--}; name=${name//-/_}
        case "$name" in
            stage | stop_stage | ngpu | jobs) number "--$name" "$value"; printf -v "$name" %s "$value" ;;
            methods | seeds | exp | data_dir) printf -v "$name" %s "$value" ;;
            *) fail "--$name: no such option; see --help" ;;
        esac
    done
}

asrcl() {
    local command=("$repository/.venv/bin/asrcl")
    if [ "$ngpu" -gt 1 ] && [[ " train adapt " == *" $1 "* ]]; then
        command=("$repository/.venv/bin/torchrun" --standalone --nproc_per_node "$ngpu" -m asrcl.cli)
    fi
    if $dry_run; then
        echo "asrcl $*"
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
    local settings=("scenario=$scenario" "exp=$exp" "device=$device" "launcher.jobs=$jobs" "$@" ${overrides[@]+"${overrides[@]}"})
    [ -z "$data_dir" ] || settings+=("data_dir=$(cd "$data_dir" 2>/dev/null && pwd || fail "--data_dir $data_dir: no such folder")")
    $dry_run || bash "$repository/tools/setup.sh"
    run_stage 1 "data" asrcl prepare --stage data "${settings[@]}"
    run_stage 2 "tokens" asrcl prepare --stage tokens "${settings[@]}"
    run_stage 3 "initial model" asrcl train --seeds "$seeds" "${settings[@]}"
    run_stage 4 "adapt" asrcl adapt --methods "$methods" --seeds "$seeds" "${settings[@]}"
    run_stage 5 "decode" asrcl decode --methods "$methods" --seeds "$seeds" "${settings[@]}"
    run_stage 6 "score" asrcl score "$exp/$scenario"
    run_stage 7 "report" asrcl report "$exp/$scenario"
    echo "== done ($((SECONDS / 60)) min $((SECONDS % 60)) s)"
}
