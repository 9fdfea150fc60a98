"""One program each, kept alive between work items; started by `benchmarks.harness`."""
