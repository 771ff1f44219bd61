#!/usr/bin/env bash
# The hard sequence of synthetic accents: every accent brings words that no other has. README.md beside this file has the numbers.
usage='recipes/accents_topics/run.sh: five accents, each with words of its own, from an initial model that knows one topic (synthetic
speech, no download)'
source "$(dirname "${BASH_SOURCE[0]}")/../common/recipe.sh"
scenario=accents_topics
jobs=2
parse_options "$@"
settings=()
if $quick; then scenario=accents_topics_quick; settings=(model=conformer_tiny train=quick decode=ctc_greedy); fi
cd "$repository"
run_recipe "$scenario" ${settings[@]+"${settings[@]}"}
