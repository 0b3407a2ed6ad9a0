"""The call of a policy in C: from an object of Python to an observation, and from the action to an object again."""

from __future__ import annotations

CALL = r"""
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    char *weights;
    float *scratch;
    float *memory;
    float *converted; /* one observation */
    npy_intp remembered; /* observations whose memory is held; 0 at the start of an episode */
    int level;
    PyObject *error, *kernels, *source, *text;
} Policy;

static const npy_intp obs_shape[] = OBS_SHAPE;
static const npy_intp action_shape[] = ACTION_SHAPE;

static void *room(size_t size)
{
    return aligned_alloc(64, (size + 127) / 64 * 64);
}

static int refuse_nan(Policy *p)
{
    PyErr_SetString(p->error, "The observation has an entry that is not a number (NaN). Mend the environment, or "
                              "replace it before the policy is asked.");
    return -1;
}

/* Whether an array's shape is that of an observation (0) or of a batch (1); or -1 with an error. */
static int batched(Policy *p, PyArrayObject *a)
{
    const int dims = PyArray_NDIM(a), batch = dims == OBS_DIMS + 1;
    int fits = dims == OBS_DIMS || batch;
    for (int d = 0; fits && d < OBS_DIMS; d++) {
        fits = PyArray_DIM(a, d + batch) == obs_shape[d];
    }
    if (!fits) {
        PyObject *shape = PyObject_GetAttrString((PyObject *)a, "shape");
        PyErr_Format(p->error, "The observation has shape %S, but the policy takes " OBS_WORDS ", or a batch of such "
                               "with one dimension more in front. Give it as the environment does.", shape);
        Py_XDECREF(shape);
        return -1;
    }
    return batch;
}

/* Whether the array can be read as it lies: float32 of this machine, one entry after another. */
static inline int plain(PyArrayObject *a)
{
    const int flags = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED;
    return PyArray_TYPE(a) == NPY_FLOAT32 && (PyArray_FLAGS(a) & flags) == flags && PyArray_ISNOTSWAPPED(a);
}

/* Return the observation as an array of float32 as it is to lie, a new reference, or NULL with an error. */
static PyArrayObject *converted(Policy *p, PyObject *obs)
{
    PyArrayObject *a = (PyArrayObject *)PyArray_FROM_O(obs);
    if (!a) {
        return NULL;
    }
    if (!PyArray_ISINTEGER(a) && !PyArray_ISFLOAT(a) && !PyArray_ISBOOL(a)) {
        PyErr_Format(p->error, "The observation is of type %S, but the policy takes numbers. Give it as the "
                               "environment does.", (PyObject *)PyArray_DESCR(a));
        Py_DECREF(a);
        return NULL;
    }
    PyObject *made = PyArray_FROM_OTF((PyObject *)a, NPY_FLOAT32, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST);
    Py_DECREF(a);
    return (PyArrayObject *)made;
}

/* Return the mask of allowed actions as bytes, a new reference, or NULL with an error. */
static PyArrayObject *mask_of(Policy *p, PyObject *mask, npy_intp rows)
{
    PyArrayObject *a = (PyArrayObject *)PyArray_FROM_OTF(mask, NPY_BOOL, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST);
    if (a && PyArray_SIZE(a) != rows * ALLOWED) {
        PyErr_Format(p->error, "The mask of allowed actions has %zd entries, but the policy takes %d for an "
                               "observation, and there are %zd. Give it as the environment does.",
                     (Py_ssize_t)PyArray_SIZE(a), ALLOWED, (Py_ssize_t)rows);
        Py_CLEAR(a);
    }
    return a;
}

/* Make room for the memory of that many observations; at the start of an episode it is empty. */
static int remember(Policy *p, npy_intp rows)
{
    if (p->remembered && p->remembered != rows) {
        PyErr_Format(p->error, "The policy remembers %zd observations at a time, got %zd. Call reset() before an "
                               "episode with another batch begins.", (Py_ssize_t)p->remembered, (Py_ssize_t)rows);
        return -1;
    }
    if (!p->remembered) {
        free(p->memory);
        p->memory = room(rows * MEMORY * sizeof(float));
        if (!p->memory) {
            PyErr_NoMemory();
            return -1;
        }
        memset(p->memory, 0, rows * MEMORY * sizeof(float));
        p->remembered = rows;
    }
    return 0;
}

static PyObject *single(Policy *p, const float *x, const unsigned char *allowed)
{
#if MEMORY
    if (p->remembered != 1 && remember(p, 1)) {
        return NULL;
    }
#endif
#if ACTION_FLOATS
    PyObject *made = PyArray_SimpleNew(ACTION_DIMS, (npy_intp *)action_shape, NPY_FLOAT32);
    if (!made) {
        return NULL;
    }
    if (ONE(p->weights, p->scratch, p->memory, x, allowed, PyArray_DATA((PyArrayObject *)made))) {
        Py_DECREF(made);
        refuse_nan(p);
        return NULL;
    }
    return made;
#else
    float action[ACTION_SIZE];
    if (ONE(p->weights, p->scratch, p->memory, x, allowed, action)) {
        refuse_nan(p);
        return NULL;
    }
#if ACTION_INTEGER
    return PyLong_FromLong((long)action[0]);
#else
    PyObject *made = PyArray_SimpleNew(ACTION_DIMS, (npy_intp *)action_shape, ACTION_TYPE);
    if (made) {
        for (int i = 0; i < ACTION_SIZE; i++) {
            if (ACTION_TYPE == NPY_INT64) {
                ((npy_int64 *)PyArray_DATA((PyArrayObject *)made))[i] = (npy_int64)action[i];
            } else {
                ((npy_int8 *)PyArray_DATA((PyArrayObject *)made))[i] = (npy_int8)action[i];
            }
        }
    }
    return made;
#endif
#endif
}

/* A batch: as many observations as go through together, again and again. */
static PyObject *several(Policy *p, const float *x, const unsigned char *allowed, npy_intp rows)
{
    npy_intp shape[ACTION_DIMS + 1];
    shape[0] = rows;
    for (int d = 0; d < ACTION_DIMS; d++) {
        shape[d + 1] = action_shape[d];
    }
    if (MEMORY && rows && remember(p, rows)) {
        return NULL;
    }
    PyArrayObject *made = (PyArrayObject *)PyArray_SimpleNew(ACTION_DIMS + 1, shape, NPY_FLOAT32);
    if (!made) {
        return NULL;
    }
    float *action = PyArray_DATA(made);
    for (npy_intp i = 0; i < rows; i += CHUNK) {
        const long n = rows - i < CHUNK ? (long)(rows - i) : CHUNK;
        if (MANY[p->level](p->weights, p->scratch, p->memory + i * MEMORY, x + i * OBS_SIZE,
                           allowed ? allowed + i * ALLOWED : NULL, action + i * ACTION_SIZE, n)) {
            Py_DECREF(made);
            refuse_nan(p);
            return NULL;
        }
    }
    if (ACTION_FLOATS) {
        return (PyObject *)made;
    }
    PyObject *whole = PyArray_Cast(made, ACTION_TYPE);
    Py_DECREF(made);
    return whole;
}

/* One observation of another common type, which lies in order, as float32; NULL where it is none of those. */
static const float *copied(Policy *p, PyArrayObject *a)
{
    const int flags = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED;
    if ((PyArray_FLAGS(a) & flags) != flags || !PyArray_ISNOTSWAPPED(a)) {
        return NULL;
    }
#define COPY(kind, type) \
    case kind: \
        for (int i = 0; i < OBS_SIZE; i++) { \
            p->converted[i] = (float)((const type *)PyArray_DATA(a))[i]; \
        } \
        return p->converted;
    switch (PyArray_TYPE(a)) {
        COPY(NPY_FLOAT64, double)
        COPY(NPY_UINT8, unsigned char)
        COPY(NPY_INT64, npy_int64)
    }
    return NULL;
}

/* What is not one plain array alone. */
static PyObject *decide(Policy *p, PyObject *obs, PyObject *mask)
{
    PyArrayObject *a = converted(p, obs), *m = NULL;
    PyObject *made = NULL;
    if (!a) {
        return NULL;
    }
    const int batch = batched(p, a);
    if (batch < 0) {
        goto done;
    }
    const npy_intp rows = batch ? PyArray_DIM(a, 0) : 1;
    if (mask && !ALLOWED) {
        PyErr_SetString(p->error, "A mask of allowed actions is given, but the policy takes none. Leave it out.");
        goto done;
    }
    if (ALLOWED) {
        if (mask) {
            m = mask_of(p, mask, rows);
        } else {
            npy_intp size = rows * (ALLOWED ? ALLOWED : 1);
            m = (PyArrayObject *)PyArray_SimpleNew(1, &size, NPY_BOOL);
            if (m) {
                memset(PyArray_DATA(m), 1, size);
            }
        }
        if (!m) {
            goto done;
        }
    }
    const unsigned char *allowed = m ? PyArray_DATA(m) : NULL;
    made = batch ? several(p, PyArray_DATA(a), allowed, rows) : single(p, PyArray_DATA(a), allowed);
done:
    Py_XDECREF(m);
    Py_DECREF(a);
    return made;
}

static PyObject *call(PyObject *self, PyObject *const *args, size_t nargs, PyObject *names)
{
    Policy *p = (Policy *)self;
    const Py_ssize_t n = PyVectorcall_NARGS(nargs), named = names ? PyTuple_GET_SIZE(names) : 0;
    if (!ALLOWED && n == 1 && !named && PyArray_Check(args[0])) {
        PyArrayObject *a = (PyArrayObject *)args[0];
        int fits = PyArray_NDIM(a) == OBS_DIMS;
        for (int d = 0; d < OBS_DIMS; d++) {
            fits = fits && PyArray_DIM(a, d) == obs_shape[d];
        }
        if (__builtin_expect(fits, 1)) {
            const float *x = __builtin_expect(plain(a), 1) ? PyArray_DATA(a) : copied(p, a);
            if (x) {
                return single(p, x, NULL);
            }
        }
    }
    if (n != 1 || named > 1 || (named && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "allowed"))) {
        PyErr_SetString(PyExc_TypeError, "A policy is called as policy(observation) or policy(observation, "
                                         "allowed=mask).");
        return NULL;
    }
    return decide(p, args[0], named && args[1] != Py_None ? args[1] : NULL);
}
"""
