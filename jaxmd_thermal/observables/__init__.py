"""Accumulators for the scanned run loop: pairs of pure functions `init`/`update`, and `finalize` on the host."""
