#!/usr/bin/env bash
# Image classification, task by task, with the methods of the house. README.md beside this file says what there is.
usage='recipes/images/run.sh: continual learning on image benchmarks
Scenarios: --scenario permuted_digits (default), rotated_digits, split_digits (scikit-learn'\''s 8 x 8 digits, nothing to download);
permuted_mnist, rotated_mnist, split_mnist, noisy_split_mnist, random_label_mnist (--data_dir DIR holds mnist/mnist.npz);
split_cifar10, noisy_split_cifar10, split_cifar100, cifar100_superclass, permuted_fashion_mnist, split_fashion_mnist, omniglot,
omniglot_rotation, five_dataset, tiny_imagenet20, tiny_imagenet40 (docs/images.md says what DIR holds).
scenario.incremental=domain|task|class: what is known at test time; model=mlp|lenet|alexnet_small|resnet18; evaluation.domains=seen for many domains.'
source "$(dirname "${BASH_SOURCE[0]}")/../common/recipe.sh"
scenario=permuted_digits
jobs=2
prepares=false
parse_options "$@"
settings=()
if $quick; then settings+=(tuned=none train.initial.epochs=2 train.adapt.epochs=2 evaluation.domains=seen); fi
cd "$repository"
run_recipe "$scenario" ${settings[@]+"${settings[@]}"}
