"""Small studies of why continual learning works or fails: one folder each, run by `asrcl study NAME`.

A study trains many small networks side by side (`ensemble`), measures them, and leaves tables and figures (`study`). What it
measures with is the library's (`asrcl.curvature`); recipes use the same tools as observers.
"""
