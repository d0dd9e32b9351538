"""What this process may use of its machine: threads, CPUs, control groups."""
