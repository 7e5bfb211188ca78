// Between pages and blocks of fp8.

#include "pages.cuh"

// OCP e4m3: bias 7, no infinities; 0x7F and 0xFF are NaN, of which 0x7F is written.
struct Code {
    static constexpr float LARGEST = 448.0f;
    static constexpr bool HAS_SIGN = true;

    // The code of a number within the largest, in the first byte and without its sign.
    static __device__ u32 plain(float scaled) {
        // What is under 2^-6 has the same step as what follows: subnormal.
        const u32 exponent = max(as_bits(scaled) & 0x7F800000u, 0x3C800000u), rounder = exponent + (20 << 23);
        const u32 steps = as_bits(fabsf(scaled) + as_float(rounder)) - rounder;
        return steps + (exponent >> 20) - (121 << 3);
    }

    static __device__ u32 code(float scaled) {
        return scaled != scaled ? 0x7F : plain(within(scaled, LARGEST)) | (as_bits(scaled) >> 24 & 0x80);
    }

    static __device__ float value(u32 code) {
        const u32 rest = code & 0x7F;
        const float magnitude = as_float(rest << 20) * as_float((127 + 120) << 23);
        return rest == 0x7F ? as_float(0x7FC00000) : as_float(as_bits(magnitude) | (code & 0x80) << 24);
    }
};

#include "eight.cuh"

ONE(kvhive_gather_fp8_f16, F16, encode)
ONE(kvhive_gather_fp8_bf16, BF16, encode)
ONE(kvhive_gather_fp8_f32, F32, encode)
ONE(kvhive_scatter_fp8_f16, F16, decode)
ONE(kvhive_scatter_fp8_bf16, BF16, decode)
ONE(kvhive_scatter_fp8_f32, F32, decode)
