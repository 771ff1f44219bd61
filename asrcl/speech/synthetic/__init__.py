"""Synthetic English accents and channels: sentences of closed grammars spoken by espeak-ng, with nothing to download.

    rows = synthesise("SCO", accent="SCO", sizes={"train": 300, "test": 100}, seed=0, folder=Path("data"))

- `espeak`: accents and the synthesiser
- `speakers`: who speaks; train, dev and test speakers are disjoint
- `grammar`: what is said; test sentences are no training sentences
- `prose`: general sentences with case and punctuation, to be said instead
- `channel`: telephone, noise, reverberation
- `corpus`: all of it together, as FLAC files and a manifest
"""

from asrcl.speech.synthetic.channel import CHANNELS, apply_channel, noise, reverberation, telephone
from asrcl.speech.synthetic.corpus import TOPIC_OF, check_settings, synthesise
from asrcl.speech.synthetic.espeak import ACCENTS, ESPEAK_RATE, Synthesizer
from asrcl.speech.synthetic.grammar import TOPICS, sentence, sentences, split_of, vocabulary
from asrcl.speech.synthetic.prose import general_sentence
from asrcl.speech.synthetic.speakers import POOLS, VARIANTS, Speaker, own_voice, speaker, speakers

__all__ = [
    "ACCENTS",
    "CHANNELS",
    "ESPEAK_RATE",
    "POOLS",
    "TOPICS",
    "TOPIC_OF",
    "VARIANTS",
    "Speaker",
    "Synthesizer",
    "apply_channel",
    "check_settings",
    "general_sentence",
    "noise",
    "own_voice",
    "reverberation",
    "sentence",
    "sentences",
    "speaker",
    "speakers",
    "split_of",
    "synthesise",
    "telephone",
    "vocabulary",
]
