// Eight bits a number, whatever the code: gpu/src/codec/eight.rs is the reference. A plane is its scales, then its codes.

#include "pages.cuh"

constexpr u32 WARPS = THREADS / 32;
// Tokens that a thread has under way at the same time, where they share a scale.
constexpr u32 KEPT = 4;

// Returns a number's magnitude as bits that order as magnitudes do, 0 for what is not finite.
template <int ELEMENT> __device__ inline u32 magnitude_of(u32 bits) {
    const u32 infinite = ELEMENT == F16 ? 0x7C00 : ELEMENT == BF16 ? 0x7F80 : 0x7F800000;
    const u32 magnitude = bits & (ELEMENT == F32 ? 0x7FFFFFFF : 0x7FFF);
    return magnitude < infinite ? magnitude : 0;
}

template <int ELEMENT> __device__ inline u32 largest_of(const Chunk& chunk, u32 most) {
#pragma unroll
    for (u32 at = 0; at < NUMBERS<ELEMENT>; at++) most = max(most, magnitude_of<ELEMENT>(bits_at<ELEMENT>(chunk, at)));
    return most;
}

// The largest of a row, which so many lanes have seen a part of each.
__device__ inline u32 largest_of_lanes(u32 most, u32 lanes) {
    for (u32 apart = lanes / 2; apart > 0; apart /= 2) most = max(most, __shfl_xor_sync(0xFFFFFFFF, most, apart));
    return most;
}

// The scale as bf16: what brings this magnitude under the largest code, rounded up; 0 where its reciprocal would not be finite.
template <int ELEMENT, class CODE> __device__ inline u32 scale_for(u32 magnitude) {
    const float exact = value_of<ELEMENT>(magnitude) / CODE::LARGEST;
    const u32 half = (as_bits(exact) + 0xFFFF) >> 16;
    return half < 0x0080 ? 0 : half;
}

__device__ inline float reciprocal(u32 half) { return half == 0 ? 0.0f : 1.0f / as_float(half << 16); }

// The codes of a chunk; `inverses` are those of its numbers.
template <int ELEMENT, class CODE> __device__ inline u64 codes_of(const Chunk& chunk, const float* inverses) {
    u32 codes[2] = {0, 0};
#pragma unroll
    for (u32 at = 0; at < NUMBERS<ELEMENT>; at++)
        codes[at / 4] |= CODE::code(value_of<ELEMENT>(bits_at<ELEMENT>(chunk, at)) * inverses[at]) << (at % 4 * 8);
    return codes[0] | (u64)codes[1] << 32;
}

__device__ inline void write_scale(u64 scales, u32 at, u32 half) {
    // Wherever a block lies.
    const u64 address = scales + 2 * (u64)at;
    if ((address & 1) == 0) {
        *(u16*)address = (u16)half;
    } else {
        ((u8*)address)[0] = (u8)half;
        ((u8*)address)[1] = (u8)(half >> 8);
    }
}

template <int ELEMENT, class CODE> __device__ inline u64 codes_by(const Chunk& chunk, float inverse) {
    float inverses[NUMBERS<ELEMENT>];
#pragma unroll
    for (u32 at = 0; at < NUMBERS<ELEMENT>; at++) inverses[at] = inverse;
    return codes_of<ELEMENT, CODE>(chunk, inverses);
}

// A scale a token and head. A row of no more chunks than there are lanes is read once and several rows are under way; a wider one is read twice.
template <int ELEMENT, class CODE> __device__ void encode_rows(const Job& job, const Part& part, u64 scales) {
    const Round round(job, part.at);
    const u64 codes = scales + 2 * (u64)job.tokens * job.heads;
    const auto read_at = [&](const Place& place) {
        const u64 engine = engine_row(job, part, place.row / job.heads, place.row % job.heads);
        return read(engine + place.chunk * 16, numbers_in<ELEMENT>(job, place.chunk) * BYTES<ELEMENT>);
    };
    const auto write_at = [&](const Place& place, const Chunk& chunk, float inverse) {
        const u64 to = codes + (u64)place.row * job.head_dim + place.chunk * NUMBERS<ELEMENT>;
        write_codes(to, numbers_in<ELEMENT>(job, place.chunk), codes_by<ELEMENT, CODE>(chunk, inverse));
    };
    if (round.laps == 1) {
        for (u32 from = round.first; from < round.end; from += AHEAD * round.groups) {
            Chunk chunks[AHEAD];
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ahead++) {
                const Place place = round.place(job, from, ahead);
                chunks[ahead] = Chunk{{0, 0, 0, 0}};
                if (place.is_one) chunks[ahead] = read_at(place);
            }
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ahead++) {
                const Place place = round.place(job, from, ahead);
                const u32 most = largest_of_lanes(largest_of<ELEMENT>(chunks[ahead], 0), round.lanes);
                const u32 half = scale_for<ELEMENT, CODE>(most);
                if (place.is_one) write_at(place, chunks[ahead], reciprocal(half));
                if (place.is_one && round.lane == 0) write_scale(scales, place.row, half);
            }
        }
        return;
    }
    // All lanes of a warp take a row. Its first chunk is always one.
    for (u32 row = round.first / round.laps + round.group; row < round.end / round.laps; row += round.groups) {
        u32 most = 0;
        for (u32 chunk = round.lane; chunk < job.chunks; chunk += round.lanes) most = largest_of<ELEMENT>(read_at(Place{row, chunk, true}), most);
        const u32 half = scale_for<ELEMENT, CODE>(largest_of_lanes(most, round.lanes));
        const float inverse = reciprocal(half);
        for (u32 chunk = round.lane; chunk < job.chunks; chunk += round.lanes) {
            const Place place{row, chunk, true};
            write_at(place, read_at(place), inverse);
        }
        if (round.lane == 0) write_scale(scales, row, half);
    }
}

// A scale a channel: a warp a token, a lane a chunk of its channels. The last tokens that were seen are kept, those before are read again, from a cache.
template <int ELEMENT, class CODE> __device__ void encode_channels(const Job& job, const Part& part, u64 scales) {
    constexpr u32 EACH = NUMBERS<ELEMENT>, CHANNELS = 32 * EACH, STEP = KEPT * WARPS;
    __shared__ u32 seen[WARPS][CHANNELS];
    __shared__ float inverse_of[CHANNELS];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = part.at * 32 + lane;
    const u32 head = column / job.chunks, chunk = column % job.chunks;
    const u32 numbers = head < job.heads ? numbers_in<ELEMENT>(job, chunk) : 0, tokens = numbers ? job.tokens : 0;
    const u64 codes = scales + 2 * (u64)job.heads * job.head_dim;
    Chunk kept[KEPT];
    const auto read_from = [&](u32 first) {
#pragma unroll
        for (u32 at = 0; at < KEPT; at++) {
            const u32 token = first + at * WARPS + warp;
            kept[at] = Chunk{{0, 0, 0, 0}};
            if (token < tokens) kept[at] = read(engine_row(job, part, token, head) + chunk * 16, numbers * BYTES<ELEMENT>);
        }
    };
    u32 most[EACH] = {}, first = 0;
#pragma unroll 1
    for (;; first += STEP) {
        read_from(first);
#pragma unroll
        for (u32 at = 0; at < KEPT; at++)
#pragma unroll
            for (u32 number = 0; number < EACH; number++) most[number] = max(most[number], magnitude_of<ELEMENT>(bits_at<ELEMENT>(kept[at], number)));
        if (first + STEP >= job.tokens) break;
    }
#pragma unroll
    for (u32 number = 0; number < EACH; number++) seen[warp][lane * EACH + number] = most[number];
    __syncthreads();
    if (threadIdx.x < CHANNELS) {
        u32 largest = 0;
#pragma unroll
        for (u32 other = 0; other < WARPS; other++) largest = max(largest, seen[other][threadIdx.x]);
        const u32 half = scale_for<ELEMENT, CODE>(largest), of = part.at * 32 + threadIdx.x / EACH;
        inverse_of[threadIdx.x] = reciprocal(half);
        const u32 channel = of % job.chunks * EACH + threadIdx.x % EACH;
        if (of / job.chunks < job.heads && channel < job.head_dim) write_scale(scales, of / job.chunks * job.head_dim + channel, half);
    }
    __syncthreads();
    float inverses[EACH];
#pragma unroll
    for (u32 number = 0; number < EACH; number++) inverses[number] = inverse_of[lane * EACH + number];
#pragma unroll 1
    for (;; first -= STEP, read_from(first)) {
#pragma unroll
        for (u32 at = 0; at < KEPT; at++) {
            const u32 token = first + at * WARPS + warp;
            const u64 to = codes + ((u64)token * job.heads + head) * job.head_dim + chunk * EACH;
            if (token < tokens) write_codes(to, numbers, codes_of<ELEMENT, CODE>(kept[at], inverses));
        }
        if (first == 0) break;
    }
}

template <int ELEMENT, class CODE> __device__ void encode(const Job& job) {
    const u32 parts = parts_of(job);
    for (u32 number = blockIdx.x; number < parts; number += gridDim.x) {
        const Part part = part_of(job, number);
        const u64 scales = job.blocks[part.block] + part.plane->start;
        if (part.plane->by_channel)
            encode_channels<ELEMENT, CODE>(job, part, scales);
        else
            encode_rows<ELEMENT, CODE>(job, part, scales);
        // What is shared is shared anew.
        __syncthreads();
    }
}

__device__ inline float scale_at(u64 scales, u32 at) {
    const u64 address = scales + 2 * (u64)at;
    const u32 half = (address & 1) == 0 ? *(const u16*)address : ((const u8*)address)[0] | (u32)((const u8*)address)[1] << 8;
    return as_float(half << 16);
}

template <int ELEMENT, class CODE> __device__ void decode(const Job& job) {
    constexpr u32 EACH = NUMBERS<ELEMENT>;
    const u32 parts = parts_of(job), width = job.heads * job.head_dim;
    for (u32 number = blockIdx.x; number < parts; number += gridDim.x) {
        const Part part = part_of(job, number);
        const Round round(job, part.at);
        const bool by_channel = part.plane->by_channel;
        const u64 scales = job.blocks[part.block] + part.plane->start;
        const u64 codes = scales + 2 * (u64)(by_channel ? width : job.tokens * job.heads);
        for (u32 from = round.first; from < round.end; from += AHEAD * round.groups) {
            u64 words[AHEAD];
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ahead++) {
                const Place place = round.place(job, from, ahead);
                const u64 address = codes + (u64)place.row * job.head_dim + place.chunk * EACH;
                words[ahead] = place.is_one ? read_codes(address, numbers_in<ELEMENT>(job, place.chunk)) : 0;
            }
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ahead++) {
                const Place place = round.place(job, from, ahead);
                if (!place.is_one) continue;
                const u32 token = place.row / job.heads, head = place.row % job.heads, numbers = numbers_in<ELEMENT>(job, place.chunk);
                const u32 channel = head * job.head_dim + place.chunk * EACH;
                float factors[EACH];
                if (!by_channel) {
                    const float factor = scale_at(scales, place.row);
#pragma unroll
                    for (u32 at = 0; at < EACH; at++) factors[at] = factor;
                } else {
                    const Chunk halves = read(scales + 2 * (u64)channel, 2 * numbers);
#pragma unroll
                    for (u32 at = 0; at < EACH; at++) factors[at] = as_float(bits_at<BF16>(halves, at) << 16);
                }
                Chunk chunk = {{0, 0, 0, 0}};
#pragma unroll
                for (u32 at = 0; at < EACH; at++) {
                    const u32 code = (u32)(words[ahead] >> (at * 8)) & 0xFF;
                    put<ELEMENT>(chunk, at, number_of<ELEMENT>(CODE::value(code) * factors[at]));
                }
                write(engine_row(job, part, token, head) + place.chunk * 16, numbers * BYTES<ELEMENT>, chunk);
            }
        }
    }
}

#define ONE(NAME, ELEMENT, DO) \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) NAME(const Job job) { DO<ELEMENT, Code>(job); }
