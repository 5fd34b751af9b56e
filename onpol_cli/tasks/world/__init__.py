"""The procedural world: small Python functions described in controlled English."""
