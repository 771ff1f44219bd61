#!/usr/bin/env bash
# When quadratic regularisers can be trusted. README.md beside this file says what came out.
study=quadratic
usage='recipes/quadratic/run.sh: fidelity of quadratic penalties on nine sine bands, a network of 502 parameters'
quick=(seeds=2 grid_seeds=2 tasks=3 samples=50 width=10 published.steps=20 tuned.steps=20 'strengths=[0.1,1]')
source "$(dirname "${BASH_SOURCE[0]}")/../common/study.sh"
run_study "$@"
