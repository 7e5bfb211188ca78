// Eight bits a number, whatever the `Code`, which who includes this has defined: gpu/src/codec/eight.rs is the reference. A plane is its scales, then
// its codes.

constexpr u32 WARPS = THREADS / 32;
// Tokens that a thread has under way at the same time, where they share a scale.
constexpr u32 KEPT = 4;
// Tokens of which half of the warps keep all.
constexpr u32 FEW_TOKENS = KEPT * WARPS / 2;

// Magnitudes are compared as keys: a number without its sign, as far up as it goes. Of two numbers in one word the upper one has the lower one behind it,
// which decides nothing that is asked.
template <int ELEMENT> constexpr u32 KEY_SHIFT = ELEMENT == F32 ? 1 : 17;
template <int ELEMENT> constexpr u32 INFINITE = ELEMENT == F16 ? 0x7C00 : ELEMENT == BF16 ? 0x7F80 : 0x7F800000;

template <int ELEMENT> __device__ inline u32 magnitude_of(u32 key) { return key >> KEY_SHIFT<ELEMENT>; }

// The key of a number of a chunk; where it is `EXACT`, 0 for one that is not finite.
template <int ELEMENT, bool EXACT> __device__ inline u32 key_at(const Chunk& chunk, u32 at) {
    const u32 key = ELEMENT == F32 ? chunk.word[at] << 1 : at % 2 ? chunk.word[at / 2] << 1 : chunk.word[at / 2] << 17;
    return EXACT && magnitude_of<ELEMENT>(key) >= INFINITE<ELEMENT> ? 0 : key;
}

template <int ELEMENT, bool EXACT> __device__ inline u32 largest_of(const Chunk& chunk, u32 most) {
#pragma unroll
    for (u32 at = 0; at < NUMBERS<ELEMENT>; at++) most = max(most, key_at<ELEMENT, EXACT>(chunk, at));
    return most;
}

// The largest of a row, which so many lanes have seen a part of each.
__device__ inline u32 largest_of_lanes(u32 most, u32 lanes) {
    for (u32 apart = lanes / 2; apart > 0; apart /= 2) most = max(most, __shfl_xor_sync(0xFFFFFFFF, most, apart));
    return most;
}

template <int ELEMENT> __device__ inline bool is_plain(u32 key) { return magnitude_of<ELEMENT>(key) < INFINITE<ELEMENT>; }

// The scale as bf16: what brings the magnitude of this key under the largest code, rounded up; 0 where its reciprocal would not be finite.
template <int ELEMENT> __device__ inline u32 scale_for(u32 key) {
    const float magnitude = value_of<ELEMENT>(magnitude_of<ELEMENT>(key));
    // A product is within a few last places of the quotient, which matters only next to a bf16.
    u32 bits = as_bits(magnitude * (1.0f / Code::LARGEST));
    if (((bits + 4) & 0xFFFF) <= 8) bits = as_bits(magnitude / Code::LARGEST);
    const u32 half = (bits + 0xFFFF) >> 16;
    return half < 0x0080 ? 0 : half;
}

__device__ inline float reciprocal(u32 half) { return half == 0 ? 0.0f : 1.0f / as_float(half << 16); }

// The first bytes of four words.
__device__ inline u32 packed(const u32* words) {
    return __byte_perm(__byte_perm(words[0], words[1], 0x0040), __byte_perm(words[2], words[3], 0x0040), 0x5410);
}

// The signs of four numbers of a chunk, as codes have them.
template <int ELEMENT> __device__ inline u32 signs_of(const Chunk& chunk, u32 four) {
    const u32* words = chunk.word;
    const u32 upper = ELEMENT == F32 ? __byte_perm(__byte_perm(words[0], words[1], 0x0073), __byte_perm(words[2], words[3], 0x0073), 0x5410)
                                     : __byte_perm(words[2 * four], words[2 * four + 1], 0x7531);
    return upper & 0x80808080;
}

// The codes of a chunk; `inverses` are those of its numbers. Where all that share their scales are finite, none is beyond the largest code.
template <int ELEMENT> __device__ inline u64 codes_of(const Chunk& chunk, const float* inverses, bool are_plain) {
    u32 words[2] = {0, 0};
#pragma unroll
    for (u32 four = 0; four < NUMBERS<ELEMENT> / 4; four++) {
        u32 codes[4];
#pragma unroll
        for (u32 at = 0; at < 4; at++) codes[at] = Code::plain(value_of<ELEMENT>(bits_at<ELEMENT>(chunk, 4 * four + at)) * inverses[4 * four + at]);
        words[four] = packed(codes) | (Code::HAS_SIGN ? signs_of<ELEMENT>(chunk, four) : 0);
    }
    if (!are_plain) {
#pragma unroll
        for (u32 four = 0; four < NUMBERS<ELEMENT> / 4; four++) {
            u32 codes[4];
#pragma unroll
            for (u32 at = 0; at < 4; at++) codes[at] = Code::code(value_of<ELEMENT>(bits_at<ELEMENT>(chunk, 4 * four + at)) * inverses[4 * four + at]);
            words[four] = packed(codes);
        }
    }
    return words[0] | (u64)words[1] << 32;
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

template <int ELEMENT> __device__ inline u64 codes_by(const Chunk& chunk, float inverse, bool are_plain) {
    float inverses[NUMBERS<ELEMENT>];
#pragma unroll
    for (u32 at = 0; at < NUMBERS<ELEMENT>; at++) inverses[at] = inverse;
    return codes_of<ELEMENT>(chunk, inverses, are_plain);
}

// A scale a token and head. A row of no more chunks than there are lanes is read once and several rows are under way; a wider one is read twice.
template <int ELEMENT> __device__ void encode_rows(const Job& job, const Part& part, u64 scales) {
    const Round round(job, part.at);
    const u64 codes = scales + 2 * (u64)job.tokens * job.heads;
    const auto read_at = [&](const Place& place) {
        const u32 token = job.by_heads.of(place.row);
        const u64 engine = engine_row(job, part, token, place.row - token * job.heads);
        return read(engine + place.chunk * 16, numbers_in<ELEMENT>(job, place.chunk) * BYTES<ELEMENT>);
    };
    const auto write_at = [&](const Place& place, const Chunk& chunk, float inverse, bool are_plain) {
        const u64 to = codes + (u64)place.row * job.head_dim + place.chunk * NUMBERS<ELEMENT>;
        write_codes(to, numbers_in<ELEMENT>(job, place.chunk), codes_by<ELEMENT>(chunk, inverse, are_plain));
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
                u32 most = largest_of_lanes(largest_of<ELEMENT, false>(chunks[ahead], 0), round.lanes);
                const bool are_plain = is_plain<ELEMENT>(most);
                if (__any_sync(0xFFFFFFFF, !are_plain)) most = largest_of_lanes(largest_of<ELEMENT, true>(chunks[ahead], 0), round.lanes);
                const u32 half = scale_for<ELEMENT>(most);
                if (place.is_one) write_at(place, chunks[ahead], reciprocal(half), are_plain);
                if (place.is_one && round.lane == 0) write_scale(scales, place.row, half);
            }
        }
        return;
    }
    // All lanes of a warp take a row. Its first chunk is always one.
    for (u32 row = round.first / round.laps + round.group; row < round.end / round.laps; row += round.groups) {
        u32 most = 0;
        for (u32 chunk = round.lane; chunk < job.chunks; chunk += round.lanes) most = largest_of<ELEMENT, true>(read_at(Place{row, chunk, true}), most);
        const u32 half = scale_for<ELEMENT>(largest_of_lanes(most, round.lanes));
        const float inverse = reciprocal(half);
        for (u32 chunk = round.lane; chunk < job.chunks; chunk += round.lanes) {
            const Place place{row, chunk, true};
            write_at(place, read_at(place), inverse, false);
        }
        if (round.lane == 0) write_scale(scales, row, half);
    }
}

// A scale a channel: a warp a token, a lane a chunk of its channels; where tokens are few, half of the warps take other channels. The last tokens that were
// seen are kept, those before are read again, from a cache.
template <int ELEMENT> __device__ void encode_channels(const Job& job, const Part& part, u64 scales) {
    constexpr u32 EACH = NUMBERS<ELEMENT>, CHANNELS = 32 * EACH;
    __shared__ u32 seen[WARPS][CHANNELS];
    __shared__ float inverse_of[2 * CHANNELS];
    const u32 sides = job.tokens <= FEW_TOKENS ? 2 : 1, warps = WARPS / sides, step = KEPT * warps;
    const u32 lane = threadIdx.x % 32, side = threadIdx.x / 32 % sides, warp = threadIdx.x / 32 / sides, column = (part.at * sides + side) * 32 + lane;
    const u32 head = column / job.chunks, chunk = column % job.chunks;
    const u32 numbers = head < job.heads ? numbers_in<ELEMENT>(job, chunk) : 0, tokens = numbers ? job.tokens : 0;
    const u64 codes = scales + 2 * (u64)job.heads * job.head_dim;
    Chunk kept[KEPT];
    const auto read_from = [&](u32 first) {
#pragma unroll
        for (u32 at = 0; at < KEPT; at++) {
            const u32 token = first + at * warps + warp;
            kept[at] = Chunk{{0, 0, 0, 0}};
            if (token < tokens) kept[at] = read(engine_row(job, part, token, head) + chunk * 16, numbers * BYTES<ELEMENT>);
        }
    };
    u32 first = 0;
    bool are_plain = true;
#pragma unroll 1
    for (;;) {
        u32 most[EACH] = {};
#pragma unroll 1
        for (first = 0;; first += step) {
            read_from(first);
#pragma unroll
            for (u32 at = 0; at < KEPT; at++)
#pragma unroll
                for (u32 number = 0; number < EACH; number++) {
                    const u32 key = are_plain ? key_at<ELEMENT, false>(kept[at], number) : key_at<ELEMENT, true>(kept[at], number);
                    most[number] = max(most[number], key);
                }
            if (first + step >= job.tokens) break;
        }
#pragma unroll
        for (u32 number = 0; number < EACH; number++) seen[threadIdx.x / 32][lane * EACH + number] = most[number];
        __syncthreads();
        bool is_to_be_exact = false;
        for (u32 at = threadIdx.x; at < sides * CHANNELS; at += THREADS) {
            u32 largest = 0;
            for (u32 other = at / CHANNELS; other < WARPS; other += sides) largest = max(largest, seen[other][at % CHANNELS]);
            is_to_be_exact |= !is_plain<ELEMENT>(largest);
            const u32 half = scale_for<ELEMENT>(largest), of = part.at * sides * 32 + at / EACH;
            inverse_of[at] = reciprocal(half);
            const u32 of_head = of / job.chunks, channel = of % job.chunks * EACH + at % EACH;
            if (of_head < job.heads && channel < job.head_dim) write_scale(scales, of_head * job.head_dim + channel, half);
        }
        // All over again where something is not finite, which is rare.
        if (!__syncthreads_or(is_to_be_exact)) break;
        are_plain = false;
    }
    float inverses[EACH];
#pragma unroll
    for (u32 number = 0; number < EACH; number++) inverses[number] = inverse_of[(side * 32 + lane) * EACH + number];
#pragma unroll 1
    for (;; first -= step, read_from(first)) {
#pragma unroll
        for (u32 at = 0; at < KEPT; at++) {
            const u32 token = first + at * warps + warp;
            const u64 to = codes + ((u64)token * job.heads + head) * job.head_dim + chunk * EACH;
            if (token < tokens) write_codes(to, numbers, codes_of<ELEMENT>(kept[at], inverses, are_plain));
        }
        if (first == 0) break;
    }
}

template <int ELEMENT> __device__ void encode(const Job& job) {
    const u32 parts = parts_of(job);
    for (u32 number = blockIdx.x; number < parts; number += gridDim.x) {
        const Part part = part_of(job, number);
        const u64 scales = job.blocks[part.block] + part.plane.start;
        if (part.plane.by_channel)
            encode_channels<ELEMENT>(job, part, scales);
        else
            encode_rows<ELEMENT>(job, part, scales);
        // What is shared is shared anew.
        __syncthreads();
    }
}

__device__ inline float scale_at(u64 scales, u32 at) {
    const u64 address = scales + 2 * (u64)at;
    const u32 half = (address & 1) == 0 ? *(const u16*)address : ((const u8*)address)[0] | (u32)((const u8*)address)[1] << 8;
    return as_float(half << 16);
}

template <int ELEMENT> __device__ void decode(const Job& job) {
    constexpr u32 EACH = NUMBERS<ELEMENT>;
    const u32 parts = parts_of(job), width = job.heads * job.head_dim;
    for (u32 number = blockIdx.x; number < parts; number += gridDim.x) {
        const Part part = part_of(job, number);
        const Round round(job, part.at);
        const bool by_channel = part.plane.by_channel;
        const u64 scales = job.blocks[part.block] + part.plane.start;
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
                const u32 token = job.by_heads.of(place.row), head = place.row - token * job.heads, numbers = numbers_in<ELEMENT>(job, place.chunk);
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
                    put<ELEMENT>(chunk, at, number_of<ELEMENT>(Code::value(code) * factors[at]));
                }
                write(engine_row(job, part, token, head) + place.chunk * 16, numbers * BYTES<ELEMENT>, chunk);
            }
        }
    }
}

#define ONE(NAME, ELEMENT, DO) \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) NAME(const Job job) { DO<ELEMENT>(job); }
