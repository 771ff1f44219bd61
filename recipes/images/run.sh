#!/usr/bin/env bash
# Image classification, task by task, with the methods of the house. README.md beside this file says what there is.
usage='recipes/images/run.sh: continual learning on image benchmarks
Scenarios: --scenario permuted_digits (default), rotated_digits, split_digits (scikit-learn'\''s 8 x 8 digits, nothing to download);
permuted_mnist, rotated_mnist, split_mnist (--data_dir DIR holds mnist/mnist.npz).
scenario.incremental=domain|task|class: what is known at test time; model=mlp|lenet; evaluation.domains=seen for many domains.'
source "$(dirname "${BASH_SOURCE[0]}")/../common/recipe.sh"
scenario=permuted_digits
jobs=2
prepares=false
parse_options "$@"
settings=()
if $quick; then settings+=(train.initial.epochs=2 train.adapt.epochs=1 evaluation.domains=seen); fi
cd "$repository"
run_recipe "$scenario" ${settings[@]+"${settings[@]}"}
