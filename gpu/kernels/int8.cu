// Between pages and blocks of int8.

#include "pages.cuh"

// Two's complement; -128 is NaN.
struct Code {
    static constexpr float LARGEST = 127.0f;
    static constexpr bool HAS_SIGN = false;

    // The code of a number within the largest, in the first byte.
    static __device__ u32 plain(float scaled) { return as_bits(scaled + ROUNDER); }

    static __device__ u32 code(float scaled) { return scaled != scaled ? 0x80 : plain(within(scaled, LARGEST)); }

    static __device__ float value(u32 code) {
        // 2^23 and the code as an unsigned number, less 2^23 and 128.
        const float value = as_float(0x4B000000 | (code ^ 0x80)) - 8388736.0f;
        return code == 0x80 ? as_float(0x7FC00000) : value;
    }
};

#include "eight.cuh"

ONE(kvhive_gather_int8_f16, F16, encode)
ONE(kvhive_gather_int8_bf16, BF16, encode)
ONE(kvhive_gather_int8_f32, F32, encode)
ONE(kvhive_scatter_int8_f16, F16, decode)
ONE(kvhive_scatter_int8_bf16, BF16, decode)
ONE(kvhive_scatter_int8_f32, F32, decode)
