"""Ops of the influence family, a topic a file."""
