"""One module per command: reads a config, wires the parts, returns a run."""
