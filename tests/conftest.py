"""What all tests stand on."""

import signal

# A shell's background job, and what it starts, inherits that SIGINT is ignored: then no test of Ctrl-C could end.
signal.signal(signal.SIGINT, signal.default_int_handler)
