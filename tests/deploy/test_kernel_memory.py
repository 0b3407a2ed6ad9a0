"""Kernels read and write no byte beside their own, on any width of vectors; those of AVX-512 are tried without one.

SIMDe computes in C what each intrinsic does. Here it takes the place of the compiler's header, so that the code that is
for AVX-512 runs on any machine.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import coded_layer, product, random_layer

from prunerl.deploy import build
from prunerl.deploy.kernels import choose
from prunerl.deploy.kernels.layer import Machine, packed

LAYERS = (
    random_layer(2, 24, 1.0, ""),
    random_layer(37, 83, 0.3, "tanh"),
    random_layer(23, 5, 1.0, "relu"),
    coded_layer(19, 33, None),
    coded_layer(37, 150, 0.02, 0.2),
)
SEVERAL = 19
"""Observations of a batch: a full sixteen, and some more."""

FLAGS = ("-march=x86-64-v3", "-Wno-psabi")
SANITIZE = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

MAIN = r"""
#include <stdio.h>
#include <stdlib.h>

static FILE *from, *to;

static void *take_in(void *p, size_t bytes)
{
    if (fread(p, 1, bytes, from) != bytes) {
        exit(2);
    }
    return p;
}

int main(int argc, char **argv)
{
    from = fopen(argv[argc - 2], "rb");
    to = fopen(argv[argc - 1], "wb");
    for (unsigned k = 0; k < sizeof ONES / sizeof *ONES; k++) {
        int32_t size[4]; /* rows, columns, observations, bytes of tables */
        take_in(size, sizeof size);
        const size_t out = 4 * size[0], in = 4 * size[1], n = size[2];
        char *w = take_in(aligned_alloc(64, size[3]), size[3]);
        float *xs = take_in(malloc(n * in), n * in), *ys = malloc(n * out);
        for (size_t i = 0; i < n; i++) {
            float *x = malloc(in), *y = malloc(out);
            memcpy(x, xs + i * size[1], in);
            ONES[k](y, x, w);
            fwrite(y, 1, out, to);
            free(x);
            free(y);
        }
        if (MANY[k]) {
            MANY[k](ys, xs, w, n, size[0], size[1]);
            fwrite(ys, 1, n * out, to);
        }
        free(w);
        free(xs);
        free(ys);
    }
    return fclose(to);
}
"""

SIMDE = """#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#define _mm512_cvtepu8_epi32(v) \\
    ((__m512i)__builtin_convertvector((uint8_t __attribute__((vector_size(16))))(v), ivec))
#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32
"""


@cache
def simde(compiler: build.Compiler) -> bool:
    """Whether SIMDe's headers are installed."""
    command = [*compiler.command, "-E", "-x", "c", "-"]
    return not subprocess.run(
        command, input=b"#include <simde/x86/avx512.h>\n", capture_output=True, check=False
    ).returncode


@pytest.mark.parametrize(
    ("width", "pretended"),
    [
        pytest.param(8, (), id="AVX2"),
        pytest.param(8, ("AVXVNNI",), id="AVX2 and products of bytes"),
        pytest.param(16, ("AVX512F", "AVX512VNNI", "AVX512VBMI"), id="AVX-512"),
    ],
)
def test_kernels_keep_to_their_own_memory(tmp_path: Path, width: int, pretended: tuple[str, ...]) -> None:
    compiler = build.find()
    if compiler is None:
        pytest.skip("no C compiler")
    if not any("__AVX2__" in line for line in build.macros(compiler, "native")):
        pytest.skip("a machine without AVX2")
    if pretended and not simde(compiler):
        pytest.skip("SIMDe is not installed: apt-get install libsimde-dev")
    machine = Machine("tried", width, FLAGS)
    pairs = [(layer, form) for layer in LAYERS for form in choose.forms(layer, machine)]
    if pretended == ("AVXVNNI",):
        pairs = [(layer, form) for layer, form in pairs if layer.input_scale is not None]
    text = choose._source([form for _, form in pairs], machine) + MAIN
    if pretended:
        macros = "".join(f"#define __{name}__ 1\n" for name in pretended)
        assert text.count("#include <immintrin.h>") == 1
        text = text.replace("#include <immintrin.h>", f"{SIMDE}{macros}")
        text = text.replace("static inline __attribute__((always_inline))", "static __attribute__((noinline))")
    (tmp_path / "a.c").write_text(text)
    command = [
        *compiler.command,
        *build.FLAGS,
        *FLAGS,
        *SANITIZE,
        "-o",
        str(tmp_path / "a"),
        str(tmp_path / "a.c"),
        "-lm",
    ]
    subprocess.run(command, check=True)
    rng = np.random.default_rng(0)
    inputs, expected = [], []
    for layer, form in pairs:
        x = rng.standard_normal((SEVERAL, layer.columns)).astype(np.float32)
        table = packed(form.arrays)
        inputs.append(
            np.array([layer.rows, layer.columns, SEVERAL, len(table)], np.int32).tobytes() + table + x.tobytes()
        )
        expected += [(form.kernel, product(layer, x))] * (1 if form.many is None else 2)
    (tmp_path / "in").write_bytes(b"".join(inputs))
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [str(tmp_path / "a"), str(tmp_path / "in"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[:3000]
    made, at = np.fromfile(tmp_path / "out", np.float32), 0
    for kernel, values in expected:
        part = made[at : at + values.size].reshape(values.shape)
        np.testing.assert_allclose(part, values, 1e-5, 1e-5, err_msg=kernel)
        at += values.size
    assert at == made.size
