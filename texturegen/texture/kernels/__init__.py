"""What the methods share: exemplars, windows, searches, SIMD, random numbers, cuts."""
