"""Image classification as a benchmark: the field's sequences of tasks in the same loop as speech, with the same methods.

`benchmark` makes scenarios of a configuration, whose domains `entries` writes out; `data` has images and their sources by name
(`sources`, one module for each family of formats), `shape`, `splits` and `variants` what is done to them when they are read;
`domain` makes domains of them, `models` has the networks, `task` the loss and the errors.
"""
