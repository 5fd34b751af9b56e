"""The self-contained HTML report: one file, no network, opens from disk."""
