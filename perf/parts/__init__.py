"""What `leaves.py` and `growth.py` measure, one thing per file: `add_arguments(parser)` and `run(arguments)`."""
