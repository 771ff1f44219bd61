"""The speech benchmark: corpora, features, tokeniser, recognisers, decoding."""
