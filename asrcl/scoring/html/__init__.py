"""report.html: a self-contained page of any number of runs. Needs jinja2, and neither matplotlib nor a network.

`page` gathers and renders, `sections` computes what a scenario shows, `charts` and `svg` draw, `examples` picks utterances,
`records` reads what runs tell beside their counts.
"""

from asrcl.scoring.html.page import write_html
from asrcl.scoring.records import sweeps

__all__ = ["sweeps", "write_html"]
