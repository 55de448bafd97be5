"""Ops of the smoothing family, a topic a file."""
