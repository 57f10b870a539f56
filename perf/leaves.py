"""Time compiled functions by themselves.

python perf/leaves.py floors|limit|subnormals [--help]
"""

from harness.options import run_part
from parts import floors, limit, subnormals

if __name__ == "__main__":
    run_part(__doc__, {"floors": floors, "limit": limit, "subnormals": subnormals})
