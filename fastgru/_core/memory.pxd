"""Scratch memory of one call: 64-byte aligned, freed by its owner."""
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport free, malloc

cdef inline void *aligned(void *p) noexcept nogil:
    return <void *>((<uintptr_t>p + 63) & ~<uintptr_t>63)

cdef inline int64_t round_up(int64_t n, int64_t multiple) noexcept nogil:
    return (n + multiple - 1) // multiple * multiple
