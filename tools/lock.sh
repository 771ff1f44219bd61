#!/usr/bin/env bash
# Writes tools/requirements.lock: every package of a set-up with its exact version and the hashes of its files, for Python 3.11 and
# newer, from pyproject.toml (what is needed) and tools/constraints.txt (the versions chosen by hand). Run it after a change of either.
#   tools/lock.sh             keeps the versions of the lock as far as they fit
#   tools/lock.sh --upgrade   takes the newest of what tools/constraints.txt leaves open
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/uv ] || { echo "lock: no uv in .venv; run tools/setup.sh first" >&2; exit 2; }
.venv/bin/uv pip compile pyproject.toml --extra recipes --extra dev --constraint tools/constraints.txt \
    --generate-hashes --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
    --quiet --output-file tools/requirements.lock "$@"
echo "lock: $(grep -c '==' tools/requirements.lock) packages in tools/requirements.lock"
