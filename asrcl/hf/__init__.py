"""Adaptation without forgetting in an ordinary script of Transformers.

    from asrcl.hf import AdaptationCallback
    trainer.add_callback(AdaptationCallback(trainer, old_data, keep={"general": general_dev}))
    trainer.train()                 # the model is the merged one

And several models, one for each domain, of which the surest recognises an utterance: `asrcl.hf.Surest`. Needs
`pip install transformers accelerate`; docs/huggingface.md has the rest.
"""

from asrcl.hf.callback import AdaptationCallback
from asrcl.hf.selection import Surest

__all__ = ["AdaptationCallback", "Surest"]
