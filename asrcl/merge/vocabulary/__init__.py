"""Models with other tokens: aligned by a policy that the user names.

policies      the alignment of two models               axes          which axes of which tensors depend on the vocabulary
tokens        a model's tokens, read from any toolkit     token_files   written back in the form they came in
pieces        SentencePiece files
"""

from asrcl.merge.vocabulary.policies import Alignment, FittedSource, Policy, TokenUnion, align

__all__ = ["Alignment", "FittedSource", "Policy", "TokenUnion", "align"]
