#!/usr/bin/env bash
# Experiment 2 of the IHR paper: LibriSpeech -> Libri-Adapt, LIB -> GB/M -> US/U -> IN/U -> IN/M.
usage='recipes/libri_adapt/run.sh --data_dir DIR --ngpu 1: the second experiment of the IHR paper
DIR holds LibriSpeech/ and libriadapt/; README.md says how to get them. The paper chose tau = 3 here.'
source "$(dirname "${BASH_SOURCE[0]}")/../common/recipe.sh"
methods="initial ft fta ewc ihr separate"
parse_options "$@"
[ -n "$data_dir" ] || fail "--data_dir DIR is needed: a folder with LibriSpeech/ and libriadapt/"
cd "$repository"
run_recipe libri_adapt curvature.max_items=null methods.ihr.tau=3
