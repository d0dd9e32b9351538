"""Building blocks of the methods: exemplars, windows, nearest neighbours, SIMD, random numbers, cuts."""
