"""The parts of ``scripts/benchmark.py``: one module a subcommand, over one way to measure."""
