"""Whole jobs, each a composition of the stages; what the command line and the examples call."""
