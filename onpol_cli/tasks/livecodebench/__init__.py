"""LiveCodeBench: official data in, official grades out. `task` is the bench, `data` its records."""
