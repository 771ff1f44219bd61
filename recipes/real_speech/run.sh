#!/usr/bin/env bash
# Recorded speech: AN4 census -> AN4 alphanumeric -> coffee orders -> connected digits. README.md beside this file has the numbers.
usage='recipes/real_speech/run.sh --data_dir DIR: adapt a recogniser through four recorded corpora
DIR holds an4_mfcc13/, s2i_coffee_16k/ and fsdd_8k/; local/download.sh DIR builds them from their public sources.
Scenarios: --scenario real_speech (default), digits_accents (connected digits by accent, from audio).'
source "$(dirname "${BASH_SOURCE[0]}")/../common/recipe.sh"
scenario=real_speech
jobs=2
parse_options "$@"
settings=()
if $quick; then scenario=real_speech_quick; settings=(model=conformer_tiny train=quick decode=ctc_greedy); fi
[ -n "$data_dir" ] || fail "--data_dir DIR is needed: the folder of the recorded corpora; local/download.sh DIR builds it"
cd "$repository"
run_recipe "$scenario" ${settings[@]+"${settings[@]}"}
