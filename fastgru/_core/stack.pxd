from libc.stdint cimport int64_t

cdef bint ready(object a, int ndim, int64_t last) noexcept
