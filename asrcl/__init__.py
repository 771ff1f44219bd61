"""Continual adaptation of speech recognisers."""
