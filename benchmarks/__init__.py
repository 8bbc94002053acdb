"""Measurements, not part of the installed package: run them from a checkout, as ``python -m benchmarks.peers``.

`harness` times and records; every other module is one measurement. See README.md here for what the numbers mean.
"""
