// Between pages and blocks of int8.

#include "eight.cuh"

// Two's complement; -128 is NaN.
struct Code {
    static constexpr float LARGEST = 127.0f;

    static __device__ u32 code(float scaled) {
        const u32 rounded = as_bits(within(scaled, 127.0f) + ROUNDER) & 0xFF;
        return scaled != scaled ? 0x80 : rounded;
    }

    static __device__ float value(u32 code) {
        // 2^23 and the code as an unsigned number, less 2^23 and 128.
        const float value = as_float(0x4B000000 | (code ^ 0x80)) - 8388736.0f;
        return code == 0x80 ? as_float(0x7FC00000) : value;
    }
};

ONE(kvhive_gather_int8_f16, F16, encode)
ONE(kvhive_gather_int8_bf16, BF16, encode)
ONE(kvhive_gather_int8_f32, F32, encode)
ONE(kvhive_scatter_int8_f16, F16, decode)
ONE(kvhive_scatter_int8_bf16, BF16, decode)
ONE(kvhive_scatter_int8_f32, F32, decode)
