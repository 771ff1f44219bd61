#!/usr/bin/env bash
# The checks that CI runs: lint, types, tests. Arguments go to pytest, e.g. tools/test.sh -m slow
#   JOBS=1 tools/test.sh     in one process (by default one for each core, at most four; a file's tests stay together)
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || { echo "test: no .venv here; run tools/setup.sh first" >&2; exit 2; }
cores=$(nproc)
jobs=${JOBS:-$((cores < 4 ? cores : 4))}
parallel=()
if [ "$jobs" -gt 1 ]; then
    parallel=(-n "$jobs" --dist loadfile)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # else each process would take all cores
fi
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/python -m pytest ${parallel[@]+"${parallel[@]}"} "$@"
