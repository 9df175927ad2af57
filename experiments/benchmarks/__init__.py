"""Speed and memory, always as ratios to a peer measured in the same process.

``python -m experiments.benchmarks`` lists the benchmarks.
"""
