# Shared by the recipes of studies: set `study`, `usage` and `quick` (settings of a small run), source it, call `run_study "$@"`.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

fail() { echo "run.sh: $*" >&2; exit 2; }

run_study() {
    local name=$study out="" settings=()
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help)
                cat <<USAGE
$usage
Options:
  --full      the published size, or more
  --quick     a small run that only shows that everything works
  --out DIR   where tables and figures go (default: exp/$study)
Anything with a = is a setting: seeds=3 (docs/$study.md)
USAGE
                exit 0 ;;
            --full) name=${study}_full ;;
            --quick) settings=("${quick[@]}" ${settings[@]+"${settings[@]}"}) ;;
            --out=*) out=${1#*=} ;;
            --out) [ $# -ge 2 ] || fail "--out: needs a folder"; out=$2; shift ;;
            --*) fail "$1: no such option; see --help" ;;
            *=*) settings+=("$1") ;;
            *) fail "$1: neither an option nor a setting (name=value); see --help" ;;
        esac
        shift
    done
    out=${out:-$repository/exp/$name}
    [[ "$out" = /* ]] || out="$PWD/$out" # relative to where the user is
    bash "$repository/tools/setup.sh"
    cd "$repository"
    .venv/bin/asrcl study "$name" ${settings[@]+"${settings[@]}"} --out "$out"
    echo "== done ($((SECONDS / 60)) min $((SECONDS % 60)) s; $(.venv/bin/python tools/machine_speed.py))"
}
