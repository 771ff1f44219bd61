#!/usr/bin/env bash
# Fetches the public sources of the real-speech recipe at fixed commits and packs them (git, network, about 400 MB while it runs).
#
#   recipes/real_speech/local/download.sh DATA                 all three
#   recipes/real_speech/local/download.sh DATA an4 digits      some of them
#
# Result: DATA/an4_mfcc13, DATA/fsdd_8k, DATA/s2i_coffee_16k, each with manifest.csv and ATTRIBUTION.md; a package that is there is
# kept. The coffee orders have no transcripts upstream: they are decoded here under a grammar fixed to each order's known content,
# which needs `pip install pocketsphinx` and about ten minutes; clusters and splits then differ in detail from other builds.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ $# -ge 1 ] || { echo "usage: $0 DATA [an4] [digits] [coffee]" >&2; exit 2; }
[ -x "$python" ] || { echo "download: no $python; run tools/setup.sh or set PYTHON" >&2; exit 2; }
data=$1
shift
[ $# -gt 0 ] || set -- an4 digits coffee

fetch() { # fetch URL COMMIT FOLDER: one commit, without history
    [ -f "$3/.complete" ] && return
    rm -rf "$3"
    git init -q "$3"
    git -C "$3" fetch -q --depth 1 "$1" "$2"
    git -C "$3" -c advice.detachedHead=false checkout -q FETCH_HEAD
    touch "$3/.complete"
}

for corpus in "$@"; do
    case $corpus in
    an4) name=an4_mfcc13 url=https://github.com/cphazen/Machine-Learning-Project-ASR commit=5e478f0ee6c5b060edf702acdd563948cad5545f ;;
    digits) name=fsdd_8k url=https://github.com/Jakobovski/free-spoken-digit-dataset commit=26eb9aaf76e81b692f806f9140c2d2777410d7a1 ;;
    coffee) name=s2i_coffee_16k url=https://github.com/Picovoice/speech-to-intent-benchmark commit=47b1ca63afe4f08cb83e1f70fec16764879bd130 ;;
    *) echo "download: no corpus $corpus; choose from an4 digits coffee" >&2; exit 2 ;;
    esac
    if [ -f "$data/$name/manifest.csv" ]; then
        echo "download: $data/$name is there already"
        continue
    fi
    echo "download: $corpus from $url at $commit"
    fetch "$url" "$commit" "$data/.upstream/$corpus"
    "$python" "$here/build_packages.py" "$corpus" "$data/.upstream/$corpus" "$data/$name"
    echo "download: $data/$name is ready; $data/.upstream/$corpus is no longer needed"
done
