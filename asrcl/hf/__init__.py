"""Adaptation without forgetting in an ordinary script of Transformers.

    from asrcl.hf import AdaptationCallback
    trainer.add_callback(AdaptationCallback(trainer, old_data, keep={"general": general_dev}))
    trainer.train()                 # the model is the merged one

Needs `pip install transformers accelerate`; docs/huggingface.md has the rest.
"""

from asrcl.hf.callback import AdaptationCallback

__all__ = ["AdaptationCallback"]
