"""When quadratic regularisers can be trusted: how well `½ dᵀ C d` stands for the loss of tasks whose data is gone.

Source of the setting: the research log of Lanzillotta (github.com/GiuliaLanzillotta/q2reg, January 2026), its tasks, network,
regularisers and measures. `tasks` has the data, `networks` the network, `curvature` what C may be, `monitor` the two
approximations and how they are measured, `training` the trajectories, `study` the tables and figures.
"""
