from libc.stdint cimport int64_t

from fastgru._core.table cimport fg_act, fg_table

cdef const fg_table *find(object name) except NULL
cdef fg_act parse_activation(object activation) except *
cdef int64_t threads_for(object num_threads, int64_t parts, double work) except -1
