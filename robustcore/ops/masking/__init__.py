"""Ops of the masking family, a topic a file."""
