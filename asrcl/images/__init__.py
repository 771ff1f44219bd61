"""Image classification as a benchmark: the field's sequences of tasks in the same loop as speech, with the same methods.

`benchmark` makes scenarios of a configuration; `data` reads images, `domain` makes domains of them, `task` has the loss and the
errors.
"""
