// What the kernels between an engine's pages and blocks share: where numbers lie, how they are read and written, how they are rounded. Each operation is
// the one of the host's codecs (gpu/src/codec), in the same order: the same bits come out.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned u32;
typedef unsigned long long u64;

// A plane of a tensor: the keys or the values of one layer, in packed blocks of one layer and head.
struct Plane {
    // Where the first number is in the engine's page 0, and how far it is from one page to the next.
    u64 base, page_bytes;
    // Where the plane starts in a block.
    u64 start;
    u32 keys, by_channel;
};

// Divides numbers below 2^31 without a division, which is twenty instructions.
struct Divisor {
    u32 multiplier, shift;

    __device__ u32 of(u32 number) const { return (u32)((u64)number * multiplier >> shift); }
};

// What one launch does. Addresses are of the GPU's memory.
struct Job {
    const Plane* planes;
    // Of each block the pages that its tokens are in, in their order.
    const u32* pages;
    const u64* blocks;
    // In a page: from one token to the next, from one head to the next.
    u64 token_bytes, head_bytes;
    // In a raw block: from one token to the next.
    u64 row_bytes;
    u32 block_count, plane_count, kinds;
    // Of a plane.
    u32 tokens, heads, head_dim;
    u32 page_tokens, block_pages;
    u32 element;
    // A row of one head is as many chunks of 16 bytes; 2 to the power of `lane_shift` threads of a warp take one at a time.
    u32 chunks, lane_shift;
    // Where codes are of 8 bits, as exponents of 2: lanes that keep a row, and columns of a part where tokens share a scale.
    u32 row_shift, column_shift;
    // What a plane of the first and of the second kind is cut into, and how many rows a part has.
    u32 parts[2], part_rows;
    Divisor by_heads, by_page_tokens, by_planes, by_parts, by_chunks;
};

// A part of a plane of a block: what one block of threads does at a time.
struct Part {
    Plane plane;
    u32 block, at;
};

__device__ inline u32 parts_of(const Job& job) {
    return job.block_count * (job.plane_count / job.kinds) * (job.parts[0] + job.parts[1]);
}

__device__ inline Part part_of(const Job& job, u32 number) {
    const u32 pair = job.by_parts.of(number), at = number - pair * (job.parts[0] + job.parts[1]), kind = at >= job.parts[0];
    const u32 block = job.by_planes.of(pair * job.kinds), plane = pair * job.kinds - block * job.plane_count + kind;
    return Part{job.planes[plane], block, kind ? at - job.parts[0] : at};
}

// Where the engine has the numbers of a head of a token.
__device__ inline u64 engine_row(const Job& job, const Part& part, u32 token, u32 head) {
    const u32 at = job.by_page_tokens.of(token), page = job.pages[part.block * job.block_pages + at];
    // A page is less than 2^32 bytes.
    return part.plane.base + page * part.plane.page_bytes + ((token - at * job.page_tokens) * (u32)job.token_bytes + head * (u32)job.head_bytes);
}

__device__ inline u32 as_bits(float value) { return __float_as_uint(value); }
__device__ inline float as_float(u32 bits) { return __uint_as_float(bits); }

constexpr int F16 = 0, BF16 = 1, F32 = 2;
// Bytes of a number, and numbers of a chunk.
template <int ELEMENT> constexpr u32 BYTES = ELEMENT == F32 ? 4 : 2;
template <int ELEMENT> constexpr u32 NUMBERS = 16 / BYTES<ELEMENT>;

// Sixteen bytes of an engine's or of a raw block's memory.
struct Chunk {
    u32 word[4];
};

// Reads so many bytes, 8 at most; the others are 0. Wherever they lie: one by one, in a loop that takes few registers.
__device__ inline u64 read_bytes(u64 address, u32 bytes) {
    u64 all = 0;
#pragma unroll 1
    for (u32 left = bytes; left > 0; left--) all = all << 8 | ((const u8*)address)[left - 1];
    return all;
}

__device__ inline void write_bytes(u64 address, u32 bytes, u64 all) {
#pragma unroll 1
    for (u32 at = 0; at < bytes; at++, all >>= 8) ((u8*)address)[at] = (u8)all;
}

// Reads so many bytes, 16 at most; the others are 0.
__device__ inline Chunk read(u64 address, u32 bytes) {
    if ((address & 15) == 0 && bytes == 16) {
        const uint4 all = *(const uint4*)address;
        return Chunk{{all.x, all.y, all.z, all.w}};
    }
    const u64 low = read_bytes(address, min(bytes, 8u)), high = bytes > 8 ? read_bytes(address + 8, bytes - 8) : 0;
    return Chunk{{(u32)low, (u32)(low >> 32), (u32)high, (u32)(high >> 32)}};
}

__device__ inline void write(u64 address, u32 bytes, const Chunk& chunk) {
    if ((address & 15) == 0 && bytes == 16) {
        *(uint4*)address = make_uint4(chunk.word[0], chunk.word[1], chunk.word[2], chunk.word[3]);
        return;
    }
    write_bytes(address, min(bytes, 8u), chunk.word[0] | (u64)chunk.word[1] << 32);
    if (bytes > 8) write_bytes(address + 8, bytes - 8, chunk.word[2] | (u64)chunk.word[3] << 32);
}

// The same where all of a chunk is there and begins at a multiple of its bytes. Nobody writes what is read.
__device__ inline Chunk read_evenly(u64 address) {
#ifdef __CUDA_ARCH__
    Chunk chunk;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(chunk.word[0]), "=r"(chunk.word[1]), "=r"(chunk.word[2]), "=r"(chunk.word[3])
                 : "l"(address));
    return chunk;
#else
    return read(address, 16);
#endif
}

__device__ inline void write_evenly(u64 address, const Chunk& chunk) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(chunk.word[0]), "r"(chunk.word[1]), "r"(chunk.word[2]), "r"(chunk.word[3]));
#else
    write(address, 16, chunk);
#endif
}

// So many words, 1, 2 or 4, at once.
template <u32 COUNT> __device__ inline void read_words(u64 address, u32* words) {
#ifdef __CUDA_ARCH__
    if (COUNT == 1)
        asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(words[0]) : "l"(address));
    else if (COUNT == 2)
        asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1 % COUNT]) : "l"(address));
    else
        asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1 % COUNT]), "=r"(words[2 % COUNT]), "=r"(words[3 % COUNT])
                     : "l"(address));
#else
    for (u32 at = 0; at < COUNT; at++) words[at] = ((const u32*)address)[at];
#endif
}

// The codes of a chunk of numbers, a byte each: 8 bytes or 4.
__device__ inline u64 read_codes(u64 address, u32 bytes) {
    if (bytes == 8 && (address & 7) == 0) return *(const u64*)address;
    if (bytes == 4 && (address & 3) == 0) return *(const u32*)address;
    return read_bytes(address, bytes);
}

__device__ inline void write_codes(u64 address, u32 bytes, u64 codes) {
    if (bytes == 8 && (address & 7) == 0)
        *(u64*)address = codes;
    else if (bytes == 4 && (address & 3) == 0)
        *(u32*)address = (u32)codes;
    else
        write_bytes(address, bytes, codes);
}

template <u32 BYTES> __device__ inline void write_codes_evenly(u64 address, u64 codes) {
#ifdef __CUDA_ARCH__
    if (BYTES == 8)
        asm volatile("st.global.u64 [%0], %1;" ::"l"(address), "l"(codes));
    else
        asm volatile("st.global.u32 [%0], %1;" ::"l"(address), "r"((u32)codes));
#else
    write_codes(address, BYTES, codes);
#endif
}

__device__ inline void write_scale_evenly(u64 address, u32 half) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.u16 [%0], %1;" ::"l"(address), "h"((u16)half));
#else
    *(u16*)address = (u16)half;
#endif
}

__device__ inline float from_f16(u32 half) {
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)half));
    return value;
#else
    const u32 rest = half & 0x7FFF;
    const u32 magnitude = rest < 0x0400   ? as_bits((float)rest * as_float(0x33800000))
                          : rest < 0x7C00 ? (rest << 13) + 0x38000000
                                          : rest << 13 | 0x7F800000;
    return as_float((half & 0x8000) << 16 | magnitude);
#endif
}

// The nearest binary16 of a finite value within its range.
__device__ inline u32 to_f16(float value) {
#ifdef __CUDA_ARCH__
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    const u32 bits = as_bits(value), magnitude = bits & 0x7FFFFFFF;
    const u32 rest = magnitude < 0x38800000 ? as_bits(as_float(magnitude) + 0.5f) - 0x3F000000
                                            : (magnitude - 0x38000000 + 0x0FFF + (magnitude >> 13 & 1)) >> 13;
    return (bits >> 16 & 0x8000) | rest;
#endif
}

// The bits of a number of a chunk, `at` being known when this is compiled.
template <int ELEMENT> __device__ inline u32 bits_at(const Chunk& chunk, u32 at) {
    if (ELEMENT == F32) return chunk.word[at];
    const u32 word = chunk.word[at / 2];
    return at % 2 ? word >> 16 : word & 0xFFFF;
}

template <int ELEMENT> __device__ inline float value_of(u32 bits) {
    return ELEMENT == F32 ? as_float(bits) : ELEMENT == BF16 ? as_float(bits << 16) : from_f16(bits);
}

__device__ inline float within(float value, float limit) { return fminf(fmaxf(value, -limit), limit); }

// A value as a number of the element: nearest even, the largest finite one where it is beyond, NaN without payload.
template <int ELEMENT> __device__ inline u32 number_of(float value) {
    const bool is_nan = value != value;
    if (ELEMENT == F16) return is_nan ? 0x7E00 : to_f16(within(value, 65504.0f));
    if (ELEMENT == F32) return is_nan ? 0x7FC00000 : as_bits(within(value, as_float(0x7F7FFFFF)));
    const u32 bits = as_bits(within(value, as_float(0x7F7F0000)));
    return is_nan ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// Two finite values within the element's range as a word, the first one in its lower half.
template <int ELEMENT> __device__ inline u32 two_of(float first, float second) {
#ifdef __CUDA_ARCH__
    u32 word;
    if (ELEMENT == F16)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
#else
    return number_of<ELEMENT>(first) | number_of<ELEMENT>(second) << 16;
#endif
}

template <int ELEMENT> __device__ inline void put(Chunk& chunk, u32 at, u32 number) {
    if (ELEMENT == F32)
        chunk.word[at] = number;
    else
        chunk.word[at / 2] |= number << (at % 2 * 16);
}

constexpr u32 THREADS = 256;
// Rows that a thread has under way at the same time: the memory is far.
constexpr u32 AHEAD = 4;

// One chunk of a row.
struct Place {
    u32 row, chunk;
    bool is_one;
};

// The chunks of a part's rows go round: so many lanes take one row, a warp takes several, a wide row takes several laps.
struct Round {
    u32 first, end, laps, lane, lanes, groups, group;

    __device__ Round(const Job& job, u32 part) {
        const u32 rows = job.tokens * job.heads;
        lanes = 1u << job.lane_shift;
        lane = threadIdx.x & (lanes - 1);
        group = threadIdx.x >> job.lane_shift;
        groups = THREADS >> job.lane_shift;
        laps = (job.chunks + lanes - 1) >> job.lane_shift;
        first = part * job.part_rows * laps;
        end = min(part * job.part_rows + job.part_rows, rows) * laps;
    }

    __device__ Place place(const Job& job, u32 from, u32 ahead) const {
        const u32 at = from + ahead * groups + group, row = laps == 1 ? at : at / laps;
        const u32 chunk = (at - row * laps) * lanes + lane;
        return Place{row, chunk, at < end && chunk < job.chunks};
    }
};

template <int ELEMENT> __device__ u32 numbers_in(const Job& job, u32 chunk) {
    return min(NUMBERS<ELEMENT>, job.head_dim - chunk * NUMBERS<ELEMENT>);
}

// Adding this to a number of magnitude under 2^22 leaves it rounded to nearest even in the low bits.
constexpr float ROUNDER = 12582912.0f;

// The first bytes of four words.
__device__ inline u32 packed(u32 first, u32 second, u32 third, u32 fourth) {
    return __byte_perm(__byte_perm(first, second, 0x0040), __byte_perm(third, fourth, 0x0040), 0x5410);
}
