"""Loss of plasticity: networks that learn one task after the other learn each new one less well than the last.

After "Spectral Collapse Drives Loss of Plasticity in Deep Continual Learning" (arXiv 2509.22335); docs/plasticity.md explains it.
"""
