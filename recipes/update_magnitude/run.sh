#!/usr/bin/env bash
# How much of a model should move for a new task. README.md beside this file says what came out.
study=update_magnitude
usage='recipes/update_magnitude/run.sh: frozen, initialised and hybrid training; a linear model in closed form and simulated, then small networks
seeds=0 leaves the networks out; draws=... of the simulation; pixels=[4,64] that tasks permute; threshold=... of the hybrid update'
quick=(draws=20 sweep_draws=5 seeds=1 'pixels=[4,64]' tasks=3 epochs=2)
source "$(dirname "${BASH_SOURCE[0]}")/../common/study.sh"
run_study "$@"
