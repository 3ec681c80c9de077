"""Complete runs, each composed of stages; the command line and the examples call them."""
