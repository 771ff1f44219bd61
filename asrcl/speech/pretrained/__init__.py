"""Pretrained recognisers in the layout of Hugging Face folders, as models of the registry (`model.kind=pretrained`)."""
