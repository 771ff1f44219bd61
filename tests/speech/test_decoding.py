"""The beam search against SpeechBrain's own, of which it is a faster form."""

import pytest
import torch
from speechbrain.decoders.seq2seq import S2STransformerBeamSearcher

from asrcl.exceptions import InputError
from asrcl.speech import decoding
from asrcl.speech.decoding import DecodeConfig, decode


def both_ways(model, batch, config, monkeypatch):
    """Hypotheses and their scores, as we search and as SpeechBrain does."""
    found = []
    for searcher in (decoding._NextTokenSearcher, S2STransformerBeamSearcher):
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_NextTokenSearcher", searcher)
            with torch.no_grad():
                states, lengths = model.encode(batch.features, batch.lengths)
                search = decoding._joint_beam_searcher(model, config)
                hypotheses, _, scores, _ = search(states, lengths / states.shape[1])
        found.append((hypotheses, scores))
    return found


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("candidates", [None, 5])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_search_is_that_of_speechbrain(layers, candidates, weight, make_model, make_batch, monkeypatch):
    model = make_model(decoder_layers=layers)
    batch = make_batch([60, 33, 48, 12])
    config = DecodeConfig("joint_beam", beam=3, ctc_weight=weight, ctc_candidates=candidates)
    (ours, our_scores), (theirs, their_scores) = both_ways(model, batch, config, monkeypatch)
    assert ours == theirs and any(ours)
    torch.testing.assert_close(our_scores, their_scores, rtol=1e-4, atol=1e-5)


def test_as_many_candidates_as_there_are_tokens_are_all_of_them(make_model, make_batch):
    model, batch = make_model(), make_batch([60, 33, 48])
    whole = decode(model, batch, DecodeConfig("joint_beam", beam=2))
    assert decode(model, batch, DecodeConfig("joint_beam", beam=2, ctc_candidates=9)) == whole


@torch.no_grad()
def test_two_batches_do_not_share_what_is_kept_of_the_encoder(make_model, make_batch):
    """One searcher after the other batch gives the scores of a fresh one."""
    model, config = make_model(), DecodeConfig("joint_beam", beam=2, ctc_weight=0.0)
    encoded = [model.encode(batch.features, batch.lengths) for batch in (make_batch([60, 33]), make_batch([60, 31]))]
    used, scores = decoding._joint_beam_searcher(model, config), []
    for searcher in (used, used, decoding._joint_beam_searcher(model, config)):
        states, lengths = encoded[len(scores) > 0]
        scores.append(searcher(states, lengths / states.shape[1])[2])
    assert torch.equal(scores[1], scores[2]) and not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize(
    "options, word",
    [({"ctc_candidates": 1, "beam": 2}, "at least the beam"), ({"max_items": 0}, "max_items"), ({"max_frames": 0}, "max_fr")],
)
def test_impossible_settings_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        DecodeConfig("joint_beam", **options)
