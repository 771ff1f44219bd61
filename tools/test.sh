#!/usr/bin/env bash
# The checks that CI runs: lint, types, tests. Arguments go to pytest, e.g. tools/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || { echo "test: no .venv here; run tools/setup.sh first" >&2; exit 2; }
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
