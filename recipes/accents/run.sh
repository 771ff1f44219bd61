#!/usr/bin/env bash
# Synthetic English accents, US -> ENG -> CAR -> SCO -> WMI, on two CPU cores. README.md beside this file has the numbers.
usage='recipes/accents/run.sh: adapt a recogniser accent by accent (synthetic speech, no download)
Scenarios: --scenario accents (default: a general initial model, then accents with a topic each), accents_topics (the hard one: every
accent brings words that no other has), accents_mild (the same sentences everywhere), accents_channel (telephone, noise and
reverberation as further domains), accents_all (eight accents).'
source "$(dirname "${BASH_SOURCE[0]}")/../common/recipe.sh"
scenario=accents
jobs=2
parse_options "$@"
settings=()
if $quick; then scenario=accents_quick; settings=(train=quick decode=ctc_greedy); fi
if $quick && $train_initial; then settings+=(scenario.initial.corpus.sizes.train=240); fi
cd "$repository"
run_recipe "$scenario" ${settings[@]+"${settings[@]}"}
