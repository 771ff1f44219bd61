"""What models, benchmarks and methods agree on: the protocols of data and tasks, weights as a value, the hooks of a method."""
