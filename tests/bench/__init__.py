"""Benchmarks: side by side, as ratios in one run. `make bench` runs them; no test is timed."""
