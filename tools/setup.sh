#!/usr/bin/env bash
# Makes .venv with the packages of tools/requirements.lock: all of them with exact versions and the hashes of their files
# (tools/lock.sh writes it). Safe to run again: it does nothing when .venv is up to date.
#   tools/setup.sh            everything (recipes and tests)
#   tools/setup.sh --browser  also Chromium, in which the tests open report.html (Debian, as root; without it those tests are skipped)
#   PYTHON=python3.12 tools/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --browser ] && ! command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null; then
    echo "setup: installing Chromium"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 ||
        echo "setup: could not install Chromium; the tests that need a browser will be skipped" >&2
fi
python=${PYTHON:-python3}
stamp=.venv/.asrcl-setup
want=$(cat pyproject.toml tools/requirements.lock tools/setup.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    echo "setup: .venv is up to date"
    exit 0
fi
"$python" -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null ||
    { echo "setup: $python is missing or older than Python 3.11; name another one: PYTHON=python3.12 tools/setup.sh" >&2; exit 2; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "setup: installing the packages of tools/requirements.lock into .venv (about 5 GB; 30 seconds and the download)"
awk '/^uv==/ {found = 1} found {print} found && !/\\$/ {exit}' tools/requirements.lock > .venv/uv.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.txt
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --require-hashes -r tools/requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
echo "$want" > "$stamp"
echo "setup: done"
