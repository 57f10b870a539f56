"""What all benchmarks share: rivals in processes of their own, shapes, peaks, arguments and results."""
