"""How long the joint beam search takes, against SpeechBrain's own search of the same hypotheses, in one run.

    tools/bench_decode.py                # 180 utterances, three rounds, one thread

The model is the trained initial model of the accents recipe, the speech synthetic Caribbean English. Printed are the ratio to
SpeechBrain's search in batches of 8, the number of utterances whose hypothesis is another one, and the word error rate.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from speechbrain.decoders.seq2seq import S2STransformerBeamSearcher

from asrcl.experiment.config import load_config
from asrcl.experiment.run import build_scenario, train
from asrcl.scoring import Errors
from asrcl.scoring.display.table import markdown, plain
from asrcl.speech import decoding
from asrcl.speech.prepare import prepare_data, prepare_tokens

OURS = decoding._NextTokenSearcher
CASES: dict[str, tuple[type, Sequence[str]]] = {
    "SpeechBrain, CTC about all tokens, batches of 8": (S2STransformerBeamSearcher, ("null", "8", "2000")),
    "SpeechBrain, CTC about all tokens, batches of 64": (S2STransformerBeamSearcher, ("null", "64", "16000")),
    "last position, CTC about all tokens, batches of 64": (OURS, ("null", "64", "16000")),
    "last position, CTC about 10 tokens, batches of 64 (default)": (OURS, ("10", "64", "16000")),
}


def evaluation(folder: str, items: int, case: str) -> Callable[[], Errors]:
    """Decodes the test set as a case says."""
    searcher, (candidates, batch, frames) = CASES[case]
    sizes = f"{{train: 8, dev: 6, test: {items}}}"
    domain = f"{{name: CAR, corpus: {{kind: synthetic, accent: CAR, sizes: {sizes}}}}}"
    first = "{name: US, corpus: {kind: synthetic, accent: US, topics: false, sizes: {train: 8, dev: 6, test: 6}}}"
    options = [f"decode.ctc_candidates={candidates}", f"decode.max_items={batch}", f"decode.max_frames={frames}"]
    domains = f"scenario.domains=[{first},{domain}]"
    config = load_config([f"exp={folder}", "device=cpu", domains, "scenario.probes=[]", *options])
    prepare_data(config)
    prepare_tokens(config)
    train(config, 1)
    scenario = build_scenario(config, 1)
    model = scenario.build_model()
    model.load_state_dict(scenario.initial or {})

    def run() -> Errors:
        decoding._NextTokenSearcher = searcher  # type: ignore[misc]
        return scenario.task.evaluate(model, scenario.domains[1], "test")

    return run


def main() -> None:
    """Parse, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=180)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs = {case: evaluation(str(Path(folder)), options.items, case) for case in CASES}
        seconds: dict[str, list[float]] = {case: [] for case in CASES}
        found: dict[str, Errors] = {}
        for _ in range(options.rounds):
            for case, run in runs.items():
                started = time.perf_counter()
                found[case] = run()
                seconds[case].append(time.perf_counter() - started)
    reference = next(iter(CASES))
    rows = []
    for case, times in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(times, seconds[reference], strict=True)]
        pairs = zip(found[case].items, found[reference].items, strict=True)
        other = sum(ours.hypothesis != theirs.hypothesis for ours, theirs in pairs)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        each = statistics.median(times) / options.items * 1000
        rows.append([case, spread, f"{each:.1f}", str(other), f"{found[case].rate:.2f}"])
    header = ["search", "ratio median (min-max)", "ms per utterance", f"other hypotheses of {options.items}", "WER (%)"]
    print(markdown(plain(header, rows)))


if __name__ == "__main__":
    main()
