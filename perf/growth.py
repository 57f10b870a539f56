"""Measure how time and memory grow: with the size of the problem, and with threads.

python perf/growth.py curves|threads|memory [--help]
"""

from harness.options import run_part
from parts import curves, memory, threads

if __name__ == "__main__":
    run_part(__doc__, {"curves": curves, "threads": threads, "memory": memory})
