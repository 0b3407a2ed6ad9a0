"""The type and the module in C that hold a policy."""

from __future__ import annotations

TYPE = r"""
static PyObject *reset(Policy *p, PyObject *nothing)
{
    (void)nothing;
    p->remembered = 0;
    Py_RETURN_NONE;
}

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *words[] = {"weights", "error", "kernels", "source", "text", NULL};
    Py_buffer weights;
    PyObject *error, *kernels, *source, *text;
    if (!PyArg_ParseTupleAndKeywords(args, named, "y*OOOO", words, &weights, &error, &kernels, &source, &text)) {
        return NULL;
    }
    Policy *p = (Policy *)type->tp_alloc(type, 0);
    if (p) {
        p->call = call;
        p->level = best();
        p->error = Py_NewRef(error);
        p->kernels = Py_NewRef(kernels);
        p->source = Py_NewRef(source);
        p->text = Py_NewRef(text);
        p->weights = room(weights.len);
        p->scratch = room(SCRATCH * sizeof(float));
        p->converted = room(OBS_SIZE * sizeof(float));
        if (!p->weights || !p->scratch || !p->converted) {
            Py_CLEAR(p);
            PyErr_NoMemory();
        } else {
            memcpy(p->weights, weights.buf, weights.len);
            memset(p->scratch, 0, SCRATCH * sizeof(float));
        }
    }
    PyBuffer_Release(&weights);
    return (PyObject *)p;
}

static int traverse(Policy *p, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(p));
    Py_VISIT(p->error);
    Py_VISIT(p->kernels);
    return 0;
}

static int clear(Policy *p)
{
    Py_CLEAR(p->error);
    Py_CLEAR(p->kernels);
    return 0;
}

static void dealloc(Policy *p)
{
    PyTypeObject *type = Py_TYPE(p);
    PyObject_GC_UnTrack(p);
    clear(p);
    Py_CLEAR(p->source);
    Py_CLEAR(p->text);
    free(p->weights);
    free(p->scratch);
    free(p->converted);
    free(p->memory);
    type->tp_free(p);
    Py_DECREF(type);
}

static PyObject *text(Policy *p)
{
    return Py_NewRef(p->text);
}

static PyMethodDef methods[] = {
    {"reset", (PyCFunction)reset, METH_NOARGS, "Forget what was seen: call it at the start of an episode."},
    {NULL, NULL, 0, NULL},
};

static PyObject *native(PyObject *self, void *closure)
{
    (void)self;
    (void)closure;
    Py_RETURN_TRUE;
}

static PyGetSetDef computed[] = {
    {"native", native, NULL, "Whether it is compiled.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Policy, call), READONLY, NULL},
    {"kernels", T_OBJECT_EX, offsetof(Policy, kernels), READONLY, "Layer: its kernel and what it takes."},
    {"source", T_OBJECT_EX, offsetof(Policy, source), READONLY, "The C that decides."},
    {"level", T_INT, offsetof(Policy, level), READONLY, "Which of the compiled levels this machine runs."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "A compiled policy: policy(observation) is the action."},
    {Py_tp_new, new},
    {Py_tp_dealloc, dealloc},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_str, text},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_getset, computed},
    {0, NULL},
};

static PyType_Spec spec = {
    "prunerl.CompiledPolicy", sizeof(Policy), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL, slots,
};

static PyObject *level(PyObject *self, PyObject *nothing)
{
    (void)self;
    (void)nothing;
    return PyLong_FromLong(best());
}

static PyMethodDef functions[] = {
    {"level", level, METH_NOARGS, "Return which of the compiled levels this machine runs."},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    if (_import_array() < 0) {
        return -1;
    }
    PyObject *type = PyType_FromSpec(&spec);
    if (!type || PyModule_AddObjectRef(module, "CompiledPolicy", type) < 0) {
        Py_XDECREF(type);
        return -1;
    }
    Py_DECREF(type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "prunerl_policy", NULL, 0, functions, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_prunerl_policy(void)
{
    return PyModuleDef_Init(&definition);
}
"""
