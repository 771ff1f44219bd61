"""Solving with damped Kronecker blocks: many blocks once (`Solver`), or one update under many dampings (`Sweep`).

solves     blocks one after the other, neighbours sharing factors      bases    bases that are cheap to invert in
cholesky   one damped factor, in single precision of known error       sweep    many dampings
"""

from asrcl.curvature.solver.bases import TridiagonalBasis, decompose, decompose_blocks, stored_basis
from asrcl.curvature.solver.solves import Solver
from asrcl.curvature.solver.sweep import Sweep

__all__ = ["Solver", "Sweep", "TridiagonalBasis", "decompose", "decompose_blocks", "stored_basis"]
