#!/usr/bin/env bash
# Why networks stop learning. README.md beside this file says what came out.
study=plasticity
usage='recipes/plasticity/run.sh: loss of plasticity on 80 permuted tasks of 8 x 8 digits, regularisers side by side
Streams: stream=permuted_digits (default, nothing to download), permuted_mnist, random_label_mnist (data_dir=DIR holds mnist/mnist.npz),
binary_classes, split_cifar10 (data_dir=DIR holds cifar10_jpeg/cifar10_jpeg.npz).
regularisers=[bp,l2,er,l2_er,reset,l2_init,shrink_and_perturb,spectral_reg,layer_norm_l2,continual_backprop,redo]'
quick=(seeds=2 tasks=8 spectra=2 spectrum_seeds=1 hessian_steps=20 ggn_steps=10 'widths=[0,1]' fresh_tasks=1)
source "$(dirname "${BASH_SOURCE[0]}")/../common/study.sh"
run_study "$@"
