"""Non-zeros alone: compressed rows, with many observations side by side in vectors; and weights as numbers in code."""

from __future__ import annotations

import numpy as np

from prunerl.deploy.c99.text import number
from prunerl.deploy.kernels.layer import Form, Layer, Machine

LONGEST = 1024
"""Columns or rows up to which many observations are turned over on the stack."""
SUMS = 8
"""Vectors that are summed to at a time, so that none waits for the one before."""


def rows(layer: Layer, machine: Machine) -> Form | None:
    """Multiply the non-zeros of each row, four sums at a time."""
    used = layer.weight != 0
    if layer.input_scale is not None or layer.columns > 65535 or used.mean() > 0.6:
        return None
    counts = used.sum(axis=1).astype(np.int32)
    columns = np.nonzero(used)[1].astype(np.uint16)
    weights = layer.weight[used].astype(np.float32)
    arrays = (np.append(weights, np.float32(0)), np.append(columns, np.uint16(0)), counts, layer.bias)
    quarters = "\n".join(f"s{k} += w[{k}] * x[c[{k}]];" for k in range(4))
    body = f"""const float *w = p0;
const uint16_t *c = p1;
for (int r = 0; r < {layer.rows}; r++) {{
int n = p2[r];
float s0 = p3[r], s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
for (; n >= 4; n -= 4, w += 4, c += 4) {{
{quarters}
}}
for (; n > 0; n--, w++, c++) {{
s0 += *w * x[*c];
}}
const float v = (s0 + s1) + (s2 + s3);
y[r] = {layer.finish("v", "s")};
}}"""
    return Form("sparse rows", arrays, body, _many(layer, machine))


def _many(layer: Layer, machine: Machine) -> str | None:
    """Write the product with 32 observations side by side, or 16 where there are no more."""
    if max(layer.rows, layer.columns) > LONGEST:
        return None
    wide, narrow = (_beside(layer, machine.width, across) for across in (32, 16))
    return f"if (n > 16) {{\n{wide}\n}} else {{\n{narrow}\n}}"


def _beside(layer: Layer, width: int, across: int) -> str:
    """Write the product with so many observations side by side: each weight is spread over vectors of them."""
    vectors = range(across // width)
    sums = max(1, SUMS * width // across)
    names = ", ".join(f"a{s}_{v} = " + ("(vec){0}" if s else "splat(p3[r])") for s in range(sums) for v in vectors)
    several = "\n".join(_weight(s, s, vectors, width) for s in range(sums))
    single = _weight(0, 0, vectors, width)
    totals = [" + ".join(f"a{s}_{v}" for s in range(sums)) for v in vectors]
    ends = "\n".join(f"store(out[r] + {v * width}, {layer.finish(f'({t})')});" for v, t in enumerate(totals))
    return f"""float in[{layer.columns}][{across}] __attribute__((aligned(64)));
float out[{layer.rows}][{across}] __attribute__((aligned(64)));
for (long i = 0; i < n; i += {across}) {{
const int m = n - i < {across} ? (int)(n - i) : {across};
if (m == {across}) {{
{_turned(layer.columns, width, across, inwards=True)}
}} else {{
for (int j = 0; j < {layer.columns}; j++) {{
for (int k = 0; k < {across}; k++) {{
in[j][k] = k < m ? x[(i + k) * xs + j] : 0.0f;
}}
}}
}}
const float *w = p0;
const uint16_t *c = p1;
for (int r = 0; r < {layer.rows}; r++) {{
vec {names};
int left = p2[r];
for (; left >= {sums}; left -= {sums}, w += {sums}, c += {sums}) {{
{several}
}}
for (; left > 0; left--, w++, c++) {{
{single}
}}
{ends}
}}
if (m == {across}) {{
{_turned(layer.rows, width, across, inwards=False)}
}} else {{
for (int k = 0; k < m; k++) {{
for (int r = 0; r < {layer.rows}; r++) {{
y[(i + k) * ys + r] = out[r][k];
}}
}}
}}
}}"""


def _turned(count: int, width: int, across: int, *, inwards: bool) -> str:
    """Write how vectors of ``count`` entries become rows of an entry each, or come back: in squares, then the rest."""
    squares, beside = count // width * width, range(0, across, width)
    if inwards:
        square = [f"square(x + (i + {k}) * xs + j, xs, &in[j][{k}], {across});" for k in beside]
        single = "in[j][k] = x[(i + k) * xs + j];"
    else:
        square = [f"square(&out[j][{k}], {across}, y + (i + {k}) * ys + j, ys);" for k in beside]
        single = "y[(i + k) * ys + j] = out[j][k];"
    lines = "\n".join(square)
    return f"""for (int j = 0; j < {squares}; j += {width}) {{
{lines}
}}
for (int j = {squares}; j < {count}; j++) {{
for (int k = 0; k < {across}; k++) {{
{single}
}}
}}"""


def _weight(k: int, sums: int, vectors: range, width: int) -> str:
    """Write what one of the next weights adds to its sums."""
    lines = [f"const float *const t = in[c[{k}]];", f"const vec u = splat(w[{k}]);"]
    lines += [f"a{sums}_{v} += u * load(t + {v * width});" for v in vectors]
    return "\n".join(["{", *lines, "}"])


def formulae(layer: Layer, machine: Machine) -> Form | None:
    """Write every weight as a number in the code, zeros left out; for up to 300 of them."""
    used = int(np.count_nonzero(layer.weight))
    if used > 300 or layer.input_scale is not None:
        return None
    lines = []
    for r, row in enumerate(layer.weight):
        terms = [number(layer.bias[r]), *(f"{number(row[c])} * x[{c}]" for c in np.flatnonzero(row))]
        even, odd = terms[::2], terms[1::2]
        value = " + ".join(even) + (f" + ({' + '.join(odd)})" if odd else "")
        lines.append(f"y[{r}] = {layer.finish(value, 's')};")
    return Form("formulae", (), "\n".join(lines))
