#!/usr/bin/env bash
# Looks for known vulnerabilities in the packages of tools/requirements.lock (pip-audit, from the PyPI advisory database).
#   tools/audit.sh [options of pip-audit]      ends with 1 where one is found, with 3 where the database cannot be reached
set -uo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/uv ] || { echo "audit: no uv in .venv; run tools/setup.sh first" >&2; exit 2; }
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
.venv/bin/uv venv --quiet "$tool" && .venv/bin/uv pip install --quiet --python "$tool/bin/python" pip-audit==2.10.1 ||
    { echo "audit: pip-audit could not be installed; is a package index in reach?" >&2; exit 3; }
"$tool/bin/pip-audit" --requirement tools/requirements.lock --require-hashes --disable-pip --progress-spinner off "$@" \
    >"$tool/found" 2>"$tool/errors"
code=$?
unknown=$(grep -c 'could not be audited' "$tool/found")
grep -v 'could not be audited' "$tool/found"
if [ "$unknown" -gt 0 ] || { [ "$code" -ne 0 ] && [ ! -s "$tool/found" ]; }; then
    [ "$unknown" -gt 0 ] || tail -n 1 "$tool/errors" >&2
    echo "audit: the advisory database could not be reached for ${unknown/#0/all} packages, so they were not audited" >&2
    exit 3
fi
exit "$code"
