"""The functions of the C file that multiply a matrix and a vector, one for each way in which a matrix is stored."""

from __future__ import annotations

from typing import Literal

from prunerl.deploy.c99.step import Kernel

Entry = Literal["float", "int8", "int16", "shared"]
"""How an entry is stored: as it is, as a code times its row's scale, or as a place in a codebook."""

TYPE = {"float": "float", "int8": "int8_t", "int16": "int16_t", "shared": "uint8_t"}
WORTH = {"float": "{}", "int8": "(float){}", "int16": "(float){}", "shared": "book[{}]"}

ROWS = 8
"""Rows of a block of a dense matrix: an input is read once for all, and the sums fit the registers of a Cortex-M4."""

QUANTIZE = Kernel(
    "quantize",
    """
/* x / scale to the nearest whole number, the even one of two, within -127 to 127; NaN to -127. Zeros up to padded. */
NAME_KERNEL static void NAME_quantize(int16_t *q, const float *x, float scale, int32_t n, int32_t padded)
{
    int32_t i = 0;
    for (; i < n; i++) {
        float v = x[i] / scale;
        v = v > -127.0f ? v : -127.0f;
        q[i] = (int16_t)NAME_ROUND(v < 127.0f ? v : 127.0f);
    }
    for (; i < padded; i++) {
        q[i] = 0;
    }
}""",
)

DOT4 = Kernel(
    "dot4",
    """
/* Four weights, stored in the order 0, 2, 1, 3, times four inputs. */
#if defined(__ARM_FEATURE_SIMD32) && defined(__GNUC__) && !defined(__ARM_BIG_ENDIAN)
static inline int32_t NAME_dot4(const int8_t *w, const int16_t *q, int32_t sum)
{
    uint32_t four, two, pairs[2];
    __builtin_memcpy(&four, w, 4);
    __builtin_memcpy(pairs, q, 8);
    __asm__("sxtb16 %0, %1" : "=r"(two) : "r"(four));
    __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(two), "r"(pairs[0]));
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(two) : "r"(four));
    __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(two), "r"(pairs[1]));
    return sum;
}
#else
static inline int32_t NAME_dot4(const int8_t *w, const int16_t *q, int32_t sum)
{
    return sum + w[0] * q[0] + w[2] * q[1] + w[1] * q[2] + w[3] * q[3];
}
#endif""",
)


def _extra(entry: Entry) -> str:
    """Return the parameter beside the weights."""
    return {"float": "", "shared": ", const float *book"}.get(entry, ", const float *scale")


def _bias(bias: bool) -> str:
    return ", const float *b" if bias else ""


def _finish(entry: Entry, bias: bool, total: str, row: str) -> str:
    """Return a row's result: its sum, which began with the bias; of codes, times the row's scale, plus the bias."""
    if entry not in ("int8", "int16"):
        return total
    return f"{total} * scale[{row}]" + (f" + b[{row}]" if bias else "")


def _start(entry: Entry, bias: bool, row: str) -> str:
    """Return what a row's sum begins with: its bias, where the sum is not to be scaled."""
    return f"b[{row}]" if bias and entry in ("float", "shared") else "0.0f"


def dense(entry: Entry, bias: bool) -> Kernel:
    """Multiply rows in blocks of eight, whose weights lie side by side by column; then the rest, row by row."""
    name = f"dense_{entry}" + ("_bias" if bias else "")
    starts = ", ".join(f"s{k} = {_start(entry, bias, f'r + {k}')}" for k in range(ROWS))
    sums = "\n".join(f"            s{k} = NAME_FMA({WORTH[entry].format(f'w[{k}]')}, v, s{k});" for k in range(ROWS))
    ends = "\n".join(f"        y[r + {k}] = {_finish(entry, bias, f's{k}', f'r + {k}')};" for k in range(ROWS))
    return Kernel(
        name,
        f"""
NAME_KERNEL static void NAME_{name}(float *NAME_RESTRICT y, const float *NAME_RESTRICT x,
    const {TYPE[entry]} *NAME_RESTRICT w{_extra(entry)}{_bias(bias)}, int32_t rows, int32_t columns)
{{
    int32_t r = 0;
    for (; r + {ROWS} <= rows; r += {ROWS}) {{
        float {starts};
        for (int32_t i = 0; i < columns; i++) {{
            const float v = x[i];
{sums}
            w += {ROWS};
        }}
{ends}
    }}
    for (; r < rows; r++) {{
        float s = {_start(entry, bias, "r")};
        for (int32_t i = 0; i < columns; i++) {{
            s = NAME_FMA({WORTH[entry].format("*w")}, x[i], s);
            w++;
        }}
        y[r] = {_finish(entry, bias, "s", "r")};
    }}
}}""",
    )


def dense_whole(bias: bool) -> Kernel:
    """Multiply int8 codes and int8 inputs: blocks of four rows and four columns, columns padded to fours."""
    name = "dense_whole" + ("_bias" if bias else "")
    sums = "\n".join(f"            s{k} = NAME_dot4(w + {4 * k}, at, s{k});" for k in range(4))
    ends = "\n".join(f"        y[r + {k}] = {_finish('int8', bias, f'(float)s{k}', f'r + {k}')};" for k in range(4))
    return Kernel(
        name,
        f"""
NAME_KERNEL static void NAME_{name}(float *NAME_RESTRICT y, const int16_t *NAME_RESTRICT q,
    const int8_t *NAME_RESTRICT w, const float *scale{_bias(bias)}, int32_t rows, int32_t columns)
{{
    const int16_t *const end = q + columns;
    int32_t r = 0;
    for (; r + 4 <= rows; r += 4) {{
        int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (const int16_t *at = q; at < end; at += 4) {{
{sums}
            w += 16;
        }}
{ends}
    }}
    for (; r < rows; r++) {{
        int32_t s = 0;
        for (const int16_t *at = q; at < end; at += 4) {{
            s = NAME_dot4(w, at, s);
            w += 4;
        }}
        y[r] = {_finish("int8", bias, "(float)s", "r")};
    }}
}}""",
        needs=(DOT4,),
    )


def csr(entry: Entry, bias: bool, index: str, *, whole: bool) -> Kernel:
    """Multiply by the non-zeros of each row: how many they are, their columns, their weights.

    Those of whole numbers are taken four at a time; of floats that gains nothing, for there the counting is done by
    loads that move the pointers on.
    """
    name = f"csr_{entry}_{index.removesuffix('_t')}" + ("_whole" if whole else "") + ("_bias" if bias else "")
    start = "int16_t" if whole else "float"
    if whole:
        fours = "\n".join(f"            s += w[{k}] * x[column[{k}]];" for k in range(4))
        first = f"int32_t s = 0, n = *count++;\n        for (; n >= 4; n -= 4) {{\n{fours}\n            w += 4;\n"
        first += "            column += 4;\n        }"
        add = "s += *w++ * x[*column++];"
    else:
        first = f"float s = {_start(entry, bias, 'r')};\n        int32_t n = *count++;"
        add = f"s = NAME_FMA({WORTH[entry].format('*w')}, x[*column++], s);\n            w++;"
    return Kernel(
        name,
        f"""
NAME_KERNEL static void NAME_{name}(float *NAME_RESTRICT y, const {start} *NAME_RESTRICT x,
    const {TYPE[entry]} *NAME_RESTRICT w{_extra(entry)}{_bias(bias)},
    const {index} *NAME_RESTRICT count, const {index} *NAME_RESTRICT column, int32_t rows)
{{
    for (int32_t r = 0; r < rows; r++) {{
        {first}
        for (; n > 0; n--) {{
            {add}
        }}
        y[r] = {_finish(entry, bias, "(float)s" if whole else "s", "r")};
    }}
}}""",
    )


def code_at(bits: int, table: str, index: str) -> str:
    """Write the code at a place of a table of packed codes, the first in the lowest bits."""
    mask = 2**bits - 1
    if 8 % bits == 0:
        each = 8 // bits
        return f"({table}[({index}) / {each}] >> ({index}) % {each} * {bits} & {mask})"
    at = f"({index}) * {bits}"
    return f"(({table}[{at} / 8] | {table}[{at} / 8 + 1] << 8) >> {at} % 8 & {mask})"


def packed(entry: Entry, bits: int, bias: bool, *, whole: bool) -> Kernel:
    """Multiply by codes of fewer than 8 bits, packed without gaps, row by row."""
    name = f"packed{bits}_{entry}" + ("_whole" if whole else "") + ("_bias" if bias else "")
    kind, zero, start = ("int32_t", "0", "int16_t") if whole else ("float", "0.0f", "float")
    worth = f"book[{code_at(bits, 'w', 'k')}]" if entry == "shared" else f"({code_at(bits, 'w', 'k')} - {offset(bits)})"
    add = f"s += {worth} * x[i];"
    if not whole:
        add = f"s = NAME_FMA({worth if entry == 'shared' else '(float)' + worth}, x[i], s);"
    return Kernel(
        name,
        f"""
NAME_KERNEL static void NAME_{name}(float *NAME_RESTRICT y, const {start} *NAME_RESTRICT x,
    const uint8_t *NAME_RESTRICT w{_extra(entry)}{_bias(bias)}, int32_t rows, int32_t columns)
{{
    int32_t k = 0;
    for (int32_t r = 0; r < rows; r++) {{
        {kind} s = {zero if whole else _start(entry, bias, "r")};
        for (int32_t i = 0; i < columns; i++) {{
            {add}
            k++;
        }}
        y[r] = {_finish(entry, bias, "(float)s" if whole else "s", "r")};
    }}
}}""",
    )


def offset(bits: int) -> int:
    """Return what is added to a signed code of that many bits before it is packed."""
    return int(2 ** (bits - 1))
