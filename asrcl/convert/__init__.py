"""Turn models of other formats into folders of Hugging Face, which Transformers and everything here load as they are.

    from asrcl.convert import convert_ctranslate2
    convert_ctranslate2("faster-whisper-tiny.en", "whisper-tiny.en")        # a model of faster-whisper
    fold_adapter("my-adapter", "whisper-tiny.en", "folded")                 # a low-rank adapter of PEFT into its base model
    cut_adapter("my-adapter", "of-rank-8", 8)                               # the nearest adapter of another rank

Needs torch and safetensors only; the libraries that made the models need not be installed.
"""

from asrcl.convert.ctranslate2 import convert_ctranslate2
from asrcl.convert.peft import cut_adapter, fold_adapter

__all__ = ["convert_ctranslate2", "cut_adapter", "fold_adapter"]
