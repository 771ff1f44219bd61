"""report.html: a self-contained page of any number of runs. Needs jinja2, and neither matplotlib nor a network.

`page` gathers and renders, `sections` computes what a scenario shows, `charts` and `svg` draw, `examples` picks utterances.
"""
