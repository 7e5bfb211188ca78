// Between pages and blocks of int8.

#include "pages.cuh"

// Two's complement; -128 is NaN.
struct Code {
    static constexpr float LARGEST = 127.0f;
    static constexpr bool LACKS_SIGN = false;

    // The code of a number within the largest, in the first byte.
    static __device__ u32 plain(float scaled) { return as_bits(scaled + ROUNDER); }

    static __device__ u32 four(const float* scaled) { return packed(plain(scaled[0]), plain(scaled[1]), plain(scaled[2]), plain(scaled[3])); }

    static __device__ u32 code(float scaled) { return scaled != scaled ? 0x80 : plain(within(scaled, LARGEST)); }

    // What four codes stand for, none of which is NaN: 2^23 and the code as an unsigned number, less 2^23 and 128.
    static __device__ void values(u32 codes, float* four) {
        const u32 unsigned_codes = codes ^ 0x80808080;
#pragma unroll
        for (u32 at = 0; at < 4; at++) four[at] = as_float(__byte_perm(unsigned_codes, 0x4B000000, 0x7440 | at)) - 8388736.0f;
    }

    // Says whether one of four codes is NaN: whether a byte is 0 that is not 0 for any other code.
    static __device__ bool has_nan(u32 codes) {
        const u32 bytes = codes ^ 0x80808080;
        return ((bytes - 0x01010101) & ~bytes & 0x80808080) != 0;
    }

    static __device__ float value(u32 code) {
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
