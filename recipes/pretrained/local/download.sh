#!/usr/bin/env bash
# Fetches the public sources of the recorded speech of this recipe and packs them (network, git, curl, ffmpeg; 3 GB while it runs, of which
# LJSpeech is the most).
#
#   recipes/pretrained/local/download.sh DATA                     all
#   recipes/pretrained/local/download.sh DATA prompts digits      some of: ljspeech prompts coffee digits
#   recipes/pretrained/local/download.sh DATA prompts prompts-es prompts-fr prompts-it prompts-ru     what --scenario languages needs
#
# Result: DATA/ljspeech_sample, DATA/asterisk_prompts_16k, DATA/s2i_coffee_16k, DATA/fsdd_8k, each with manifest.csv and ATTRIBUTION.md; a
# package that is there is kept. Coffee orders and digits come from recipes/real_speech/local/download.sh (which says what they need).
#
# Common Voice, the probe, needs an account (recipes/commonvoice/local/download.md): unpack an English release as
# DATA/commonvoice_en_sample, the folder with validated.tsv and clips/. Of a whole release take some: scenario.commonvoice.test=100. The
# scenario was made for 100 clips of release 6.1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ $# -ge 1 ] || { echo "usage: $0 DATA [ljspeech] [prompts] [coffee] [digits] [prompts-es|fr|it|ru]" >&2; exit 2; }
[ -x "$python" ] || { echo "download: no $python; run tools/setup.sh or set PYTHON" >&2; exit 2; }
data=$1
shift
[ $# -gt 0 ] || set -- ljspeech prompts coffee digits

fetch() { # fetch URL SHA256 FILE
    [ -f "$3" ] && return
    mkdir -p "$(dirname "$3")"
    echo "download: $1"
    curl --fail --location --silent --show-error --output "$3.part" "$1"
    echo "$2  $3.part" | sha256sum --check --quiet || { echo "download: $1 is not the file that was expected" >&2; exit 2; }
    mv "$3.part" "$3"
}

for corpus in "$@"; do
    case $corpus in
    ljspeech) name=ljspeech_sample ;;
    prompts) name=asterisk_prompts_16k language=en ;;
    prompts-es | prompts-fr | prompts-it | prompts-ru) language=${corpus#*-} name=asterisk_prompts_${corpus#*-}_16k ;;
    coffee | digits)
        "$root/recipes/real_speech/local/download.sh" "$data" "$corpus"
        continue
        ;;
    *) echo "download: no corpus $corpus; choose from ljspeech prompts coffee digits" >&2; exit 2 ;;
    esac
    if [ -f "$data/$name/manifest.csv" ]; then
        echo "download: $data/$name is there already"
        continue
    fi
    upstream=$data/.upstream/$corpus
    if [ "$corpus" = ljspeech ]; then
        archive=$upstream/LJSpeech-1.1.tar.bz2
        fetch https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2 be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5 "$archive"
        tar -xjf "$archive" -C "$upstream" --strip-components=1 --wildcards 'LJSpeech-1.1/README' 'LJSpeech-1.1/metadata.csv' 'LJSpeech-1.1/wavs/LJ00[12]-*'
    else
        pool=${DEBIAN_MIRROR:-https://deb.debian.org/debian}/pool/main/a/asterisk-core-sounds
        case $language in # texts, sounds
        en) sums="973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50 38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806" ;;
        es) sums="9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74 e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8" ;;
        fr) sums="04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056 7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0" ;;
        it) sums="3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b 46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016" ;;
        ru) sums="28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab 673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b" ;;
        esac
        for package in "asterisk-core-sounds-${language}_1.6.1-1_all.deb" "asterisk-core-sounds-${language}-g722_1.6.1-1_all.deb"; do
            fetch "$pool/$package" "${sums%% *}" "$upstream/$package"
            sums=${sums##* }
        done
    fi
    "$python" "$root/recipes/real_speech/local/build_packages.py" "$corpus" "$upstream" "$data/$name"
    echo "download: $data/$name is ready; $upstream is no longer needed"
done
[ -f "$data/commonvoice_en_sample/validated.tsv" ] || echo "download: $data/commonvoice_en_sample is not there: Common Voice needs an account, see the head of this file" >&2
