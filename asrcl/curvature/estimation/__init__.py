"""The parts of an estimate, which `asrcl.curvature.estimate` puts together.

watching     capture, layers, uses, patches     what a model does with its parameters while it runs
counting     masks, batching                    which positions are real, and whose
gradients    losses, sampling, peritem          of the data's labels, of drawn ones, of every one; item by item
adding up    sums, running, gram                Kronecker factors and squared gradients
the run      loop, progress, sharing            forward and backward, resumed runs, several processes
"""
