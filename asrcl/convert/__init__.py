"""Turn models of other formats into folders of Hugging Face, which Transformers and everything here load as they are.

    from asrcl.convert import convert_ctranslate2
    convert_ctranslate2("faster-whisper-tiny.en", "whisper-tiny.en")

Needs torch and safetensors only; the libraries that made the models need not be installed.
"""

from asrcl.convert.ctranslate2 import convert_ctranslate2

__all__ = ["convert_ctranslate2"]
