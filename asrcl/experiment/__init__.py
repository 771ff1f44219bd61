"""Experiments on any benchmark: configuration, registry of benchmarks, methods x seeds, parallel runs, tuning."""
