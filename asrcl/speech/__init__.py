"""Domains of speech: corpora, features, tokeniser, Conformer, decoding."""
