"""Ops of the lipschitz family, a topic a file."""
