"""CPUs, threads, control groups and the JIT cache of this process."""
