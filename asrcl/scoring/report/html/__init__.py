"""report.html: a self-contained page of any number of runs. It loads nothing from a network.

`page` gathers and renders, `sections` computes what a scenario shows, `charts` turns figures into SVG, `examples` picks
utterances.
"""
