"""Bounds, radii and distributions: what certificates rest on."""
