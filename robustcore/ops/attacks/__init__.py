"""Ops of the attacks family, a topic a file."""
