// Between pages and blocks of fp8. It is compiled twice: for GPUs with instructions for e4m3 (sm_89 and later), and for those without.

#include "pages.cuh"

#if defined(__CUDA_ARCH__) ? __CUDA_ARCH__ >= 890 : defined(E4M3_BY_INSTRUCTION)
#define HAS_E4M3 true
#else
#define HAS_E4M3 false
#endif

// Two values as e4m3, rounded to nearest even, the first one in the lower byte.
__device__ inline u32 two_e4m3(float first, float second) {
#if !HAS_E4M3
    return 0;
#elif defined(__CUDA_ARCH__)
    u16 two;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(second), "f"(first));
    return two;
#else
    return e4m3_of(first) | e4m3_of(second) << 8;
#endif
}

// Two codes, the lower bytes of a word, as two binary16.
__device__ inline u32 two_f16(u32 codes) {
#if !HAS_E4M3
    return 0;
#elif defined(__CUDA_ARCH__)
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((u16)codes));
    return halves;
#else
    return f16_of_e4m3(codes & 0xFF) | f16_of_e4m3(codes >> 8 & 0xFF) << 16;
#endif
}

// OCP e4m3: bias 7, no infinities; 0x7F and 0xFF are NaN, of which 0x7F is written.
struct Code {
    static constexpr float LARGEST = 448.0f;
    static constexpr bool LACKS_SIGN = !HAS_E4M3;

    // The code of a number within the largest, in the first byte and without its sign.
    static __device__ u32 plain(float scaled) {
        // What is under 2^-6 has the same step as what follows: subnormal.
        const u32 exponent = max(as_bits(scaled) & 0x7F800000u, 0x3C800000u), rounder = exponent + (20 << 23);
        const u32 steps = as_bits(fabsf(scaled) + as_float(rounder)) - rounder;
        return steps + (exponent >> 20) - (121 << 3);
    }

    static __device__ u32 four(const float* scaled) {
        if (HAS_E4M3) return two_e4m3(scaled[0], scaled[1]) | two_e4m3(scaled[2], scaled[3]) << 16;
        return packed(plain(scaled[0]), plain(scaled[1]), plain(scaled[2]), plain(scaled[3]));
    }

    // Of any number. It is rare, and asks no instruction what it does with NaN.
    static __device__ u32 code(float scaled) {
        return scaled != scaled ? 0x7F : plain(within(scaled, LARGEST)) | (as_bits(scaled) >> 24 & 0x80);
    }

    // What four codes stand for, none of which is NaN.
    static __device__ void values(u32 codes, float* four) {
        if (HAS_E4M3) {
            const u32 low = two_f16(codes & 0xFFFF), high = two_f16(codes >> 16);
            four[0] = from_f16(low & 0xFFFF), four[1] = from_f16(low >> 16), four[2] = from_f16(high & 0xFFFF), four[3] = from_f16(high >> 16);
        } else {
#pragma unroll
            for (u32 at = 0; at < 4; at++) {
                // The code in the upper byte, its sign where it belongs and the rest four bits further down: a number 2^120 times too small.
                const u32 upper = __byte_perm(codes, 0, 0x0444 | at << 12);
                four[at] = as_float((upper & 0x80000000) | (upper >> 4 & 0x07F00000)) * as_float((127 + 120) << 23);
            }
        }
    }

    static __device__ bool has_nan(u32 codes) { return (((codes & 0x7F7F7F7F) + 0x01010101) & 0x80808080) != 0; }

    static __device__ float value(u32 code) {
        const u32 rest = code & 0x7F;
        const float magnitude = as_float(rest << 20) * as_float((127 + 120) << 23);
        return rest == 0x7F ? as_float(0x7FC00000) : as_float(as_bits(magnitude) | (code & 0x80) << 24);
    }
};

#include "eight.cuh"

#if HAS_E4M3
#define NAME(WAY, ELEMENT) kvhive_##WAY##_fp8_##ELEMENT##_sm89
#else
#define NAME(WAY, ELEMENT) kvhive_##WAY##_fp8_##ELEMENT
#endif

ONE(NAME(gather, f16), F16, encode)
ONE(NAME(gather, bf16), BF16, encode)
ONE(NAME(gather, f32), F32, encode)
ONE(NAME(scatter, f16), F16, decode)
ONE(NAME(scatter, bf16), BF16, decode)
ONE(NAME(scatter, f32), F32, decode)

#undef NAME
#undef HAS_E4M3
