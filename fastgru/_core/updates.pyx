"""Steps of optimisers: one pass over a weight and what is kept for it, which NumPy would read and write ten times."""

cimport numpy as cnp
from libc.math cimport sqrtf
from libc.stdint cimport int64_t

cnp.import_array()


cdef bint fits(cnp.ndarray array, int64_t size, bint written):
    if cnp.PyArray_TYPE(array) != cnp.NPY_FLOAT32 or cnp.PyArray_SIZE(array) != size:
        return False
    return cnp.PyArray_ISCARRAY(array) if written else cnp.PyArray_ISCARRAY_RO(array)


def adam(cnp.ndarray weight, cnp.ndarray gradient, cnp.ndarray momentum, cnp.ndarray velocity, velocity_hat,
         float rest_1, float rest_2, float rate, float epsilon):
    """m += (g - m) rest_1; v += (g² - v) rest_2; w -= m rate / (√v + ε), with the largest v so far where `velocity_hat` is given.

    Every operation rounds to float32, as NumPy's would.

    Raises
    ------
    ValueError
        Unless all arrays are C-contiguous float32 of one size.
    """
    for array in (weight, gradient, momentum, velocity, velocity_hat):
        if array is not None and not fits(array, cnp.PyArray_SIZE(weight), array is not gradient):
            raise ValueError(f"expected C-contiguous float32 of {weight.size} numbers, found {array.dtype} {array.shape}")
    cdef float *w = <float *>cnp.PyArray_DATA(weight)
    cdef float *m = <float *>cnp.PyArray_DATA(momentum)
    cdef float *v = <float *>cnp.PyArray_DATA(velocity)
    cdef float *hat = NULL
    cdef const float *g = <const float *>cnp.PyArray_DATA(gradient)
    cdef int64_t size = cnp.PyArray_SIZE(weight), i
    if velocity_hat is not None:
        hat = <float *>cnp.PyArray_DATA(<cnp.ndarray>velocity_hat)
    with nogil:
        if hat == NULL:
            for i in range(size):
                m[i] += (g[i] - m[i]) * rest_1
                v[i] += (g[i] * g[i] - v[i]) * rest_2
                w[i] -= m[i] * rate / (sqrtf(v[i]) + epsilon)
        else:
            for i in range(size):
                m[i] += (g[i] - m[i]) * rest_1
                v[i] += (g[i] * g[i] - v[i]) * rest_2
                hat[i] = hat[i] if hat[i] > v[i] else v[i]
                w[i] -= m[i] * rate / (sqrtf(hat[i]) + epsilon)
