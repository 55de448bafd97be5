"""Ops of the density family, a topic a file."""
