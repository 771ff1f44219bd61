"""From two texts to counts: alignments, errors per utterance, what is confused with what."""
