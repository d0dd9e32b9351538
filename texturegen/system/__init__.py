"""The machine as this process sees it: CPUs, threads, control groups."""
