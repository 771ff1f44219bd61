#!/usr/bin/env bash
# Experiment 1 of the IHR paper: English accents of Common Voice, US -> ENG -> AUS -> IND -> SCO.
usage='recipes/commonvoice/run.sh --data_dir DIR --ngpu 1: the first experiment of the IHR paper
DIR is a Common Voice release (the folder with validated.tsv and clips/); README.md says how to get it.'
source "$(dirname "${BASH_SOURCE[0]}")/../common/recipe.sh"
methods="initial ft fta ewc ihr separate"
parse_options "$@"
[ -n "$data_dir" ] || fail "--data_dir DIR is needed: a Common Voice release, the folder with validated.tsv and clips/"
cd "$repository"
run_recipe commonvoice curvature.max_items=null
