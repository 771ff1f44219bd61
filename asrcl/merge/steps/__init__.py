"""The merge methods: each one function of an update that returns the step to take. Importing this package registers them all.

elementwise    every weight by itself              slerp       along arcs
task_vectors   several updates                     spectral    singular vectors of updates
fisher         curvature on both sides             ihr         curvature of the old domains (`inverse` solves with it)
wudi           interference of updates             taken       one model's tensors as they are
"""

from asrcl.merge.steps import elementwise, fisher, ihr, slerp, spectral, taken, task_vectors, wudi

__all__ = ["elementwise", "fisher", "ihr", "slerp", "spectral", "taken", "task_vectors", "wudi"]
