"""Loss of plasticity in reinforcement learning: an agent in a world whose physics change again and again.

After the Slippery Ant of arXiv 2509.22335 and Dohare et al. 2024 (Nature 632), at a size for two cores; docs/plasticity.md
explains it. gymnasium and stable-baselines3 are imported when the study runs, and not before.
"""
