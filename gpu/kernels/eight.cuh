// Eight bits a number, whatever the `Code`, which who includes this has defined: gpu/src/codec/eight.rs is the reference. A plane is its scales, then
// its codes. Where everything lies evenly it goes by whole chunks and without a question about any number; anything else goes slowly, by the same rules.

constexpr u32 WARPS = THREADS / 32;
// Where all lies evenly: chunks of a row that a lane has, and rows that it has under way at the same time. Eight lanes read 128 bytes side by side.
constexpr u32 OF_ROW = 2, ROWS = 2;
// Tokens that a thread has under way at the same time, where they share a scale.
constexpr u32 KEPT = 4;
// The most columns, of a chunk each, that a part has where tokens share a scale.
constexpr u32 COLUMNS = 64;

// A word has two numbers of 16 bits or one of 32.
template <int ELEMENT> constexpr u32 OF_WORD = 4 / BYTES<ELEMENT>;
template <int ELEMENT> constexpr u32 MAGNITUDE = ELEMENT == F32 ? 0x7FFFFFFF : 0x7FFF7FFF;
template <int ELEMENT> constexpr u32 INFINITE = ELEMENT == F16 ? 0x7C00 : ELEMENT == BF16 ? 0x7F80 : 0x7F800000;

// The larger of each two magnitudes of two words. An infinity is above all that is finite, and NaN, some NaN, above that.
template <int ELEMENT> __device__ inline u32 larger(u32 one, u32 other) {
    if (ELEMENT == F32) return max(one, other);
#ifdef __CUDA_ARCH__
    u32 most;
    if (ELEMENT == F16)
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(most) : "r"(one), "r"(other));
    else
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(most) : "r"(one), "r"(other));
    return most;
#else
    return max(one & 0xFFFF, other & 0xFFFF) | max(one >> 16, other >> 16) << 16;
#endif
}

// The magnitudes of a word's numbers, 0 in place of one that is not finite.
template <int ELEMENT> __device__ inline u32 finite(u32 word) {
    const u32 all = word & MAGNITUDE<ELEMENT>;
    if (ELEMENT == F32) return all < INFINITE<F32> ? all : 0;
    const u32 low = all & 0xFFFF, high = all >> 16;
    return (low < INFINITE<ELEMENT> ? low : 0) | (high < INFINITE<ELEMENT> ? high << 16 : 0);
}

// The larger of a word's magnitudes.
template <int ELEMENT> __device__ inline u32 largest_of(u32 word) { return ELEMENT == F32 ? word : max(word & 0xFFFF, word >> 16); }

// The largest of what so many lanes have.
template <int ELEMENT> __device__ inline u32 largest_of_lanes(u32 most, u32 lanes) {
    for (u32 apart = lanes / 2; apart > 0; apart /= 2) most = larger<ELEMENT>(most, __shfl_xor_sync(0xFFFFFFFF, most, apart));
    return most;
}

// The scale as bf16: what brings a magnitude under the largest code, rounded up; 0 where its reciprocal would not be finite.
template <int ELEMENT> __device__ inline u32 scale_for(u32 magnitude) {
    const float value = value_of<ELEMENT>(magnitude);
    // A product is within a few last places of the quotient, which matters only next to a bf16.
    u32 bits = as_bits(value * (1.0f / Code::LARGEST)), half;
    if (ELEMENT == F32) {
        if (((bits + 4) & 0xFFFF) <= 8) bits = as_bits(value / Code::LARGEST);
        half = (bits + 0xFFFF) >> 16;
    } else {
        // Of so short a number no quotient rounds to a bf16 that it is not. So the nearest bf16, or the next one, is it; to multiply that is exact.
        const u32 near = (bits + 0x8000) & 0xFFFF0000;
        half = (near >> 16) + (as_float(near) * Code::LARGEST < value);
    }
    return half < 0x0080 ? 0 : half;
}

// 1 / scale, rounded to nearest; 0 for a scale of 0.
__device__ inline float reciprocal(u32 half) {
    const float scale = as_float(half << 16);
#ifdef __CUDA_ARCH__
    // What is within two last places of the reciprocal of a bf16 becomes the nearest by one step (gpu/src/cuda/pager.rs); a division asks more.
    float near;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(scale));
    const float inverse = __fmaf_rn(near, __fmaf_rn(-scale, near, 1.0f), near);
#else
    const float inverse = 1.0f / scale;
#endif
    return half == 0 ? 0.0f : inverse;
}

// The signs of four numbers of a chunk, as codes have them.
template <int ELEMENT> __device__ inline u32 signs_of(const Chunk& chunk, u32 four) {
    const u32* words = chunk.word;
    const u32 upper = ELEMENT == F32 ? __byte_perm(__byte_perm(words[0], words[1], 0x0073), __byte_perm(words[2], words[3], 0x0073), 0x5410)
                                     : __byte_perm(words[2 * four], words[2 * four + 1], 0x7531);
    return upper & 0x80808080;
}

// The codes of a chunk; `inverses` are those of its numbers. Where all that share their scales are finite, which is `PLAIN`, none is beyond the largest code.
template <int ELEMENT, bool PLAIN> __device__ inline u64 codes_of(const Chunk& chunk, const float* inverses) {
    u32 words[2] = {0, 0};
#pragma unroll
    for (u32 four = 0; four < NUMBERS<ELEMENT> / 4; four++) {
        float scaled[4];
#pragma unroll
        for (u32 at = 0; at < 4; at++) scaled[at] = value_of<ELEMENT>(bits_at<ELEMENT>(chunk, 4 * four + at)) * inverses[4 * four + at];
        if (PLAIN)
            words[four] = Code::four(scaled) | (Code::LACKS_SIGN ? signs_of<ELEMENT>(chunk, four) : 0);
        else
            words[four] = packed(Code::code(scaled[0]), Code::code(scaled[1]), Code::code(scaled[2]), Code::code(scaled[3]));
    }
    return words[0] | (u64)words[1] << 32;
}

template <int ELEMENT, bool PLAIN> __device__ inline u64 codes_by(const Chunk& chunk, float inverse) {
    float inverses[NUMBERS<ELEMENT>];
#pragma unroll
    for (u32 at = 0; at < NUMBERS<ELEMENT>; at++) inverses[at] = inverse;
    return codes_of<ELEMENT, PLAIN>(chunk, inverses);
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

// Says whether whole chunks are read and their codes written at once, all through a part.
template <int ELEMENT> __device__ inline bool is_even(const Job& job, const Part& part, u64 scales, u64 codes) {
    const u64 chunks = part.plane.base | part.plane.page_bytes | job.token_bytes | job.head_bytes | job.head_dim * BYTES<ELEMENT>;
    return (chunks & 15) == 0 && (codes & (NUMBERS<ELEMENT> - 1)) == 0 && (scales & 3) == 0;
}

// One row, by so many lanes, wherever it lies and whatever its numbers are. It is read twice. All lanes of a warp come, some of them without a row.
template <int ELEMENT> __device__ void encode_row(const Job& job, const Part& part, u32 row, bool is_one, u32 lane, u32 lanes, u64 scales, u64 codes) {
    const u32 token = job.by_heads.of(row), chunks = is_one ? job.chunks : 0;
    const u64 start = is_one ? engine_row(job, part, token, row - token * job.heads) : 0, to = codes + (u64)row * job.head_dim;
    u32 most = 0;
#pragma unroll 1
    for (u32 chunk = lane; chunk < chunks; chunk += lanes) {
        const Chunk numbers = read(start + chunk * 16, numbers_in<ELEMENT>(job, chunk) * BYTES<ELEMENT>);
#pragma unroll
        for (u32 word = 0; word < 4; word++) most = larger<ELEMENT>(most, finite<ELEMENT>(numbers.word[word]));
    }
    const u32 half = scale_for<ELEMENT>(largest_of<ELEMENT>(largest_of_lanes<ELEMENT>(most, lanes)));
    const float inverse = reciprocal(half);
#pragma unroll 1
    for (u32 chunk = lane; chunk < chunks; chunk += lanes) {
        const u32 count = numbers_in<ELEMENT>(job, chunk);
        const Chunk numbers = read(start + chunk * 16, count * BYTES<ELEMENT>);
        write_codes(to + chunk * NUMBERS<ELEMENT>, count, codes_by<ELEMENT, false>(numbers, inverse));
    }
    if (is_one && lane == 0) write_scale(scales, row, half);
}

// A scale a token and head, wherever things lie.
template <int ELEMENT> __device__ void encode_rows(const Job& job, const Part& part, u64 scales, u64 codes) {
    const u32 lanes = 1u << job.lane_shift, groups = THREADS >> job.lane_shift, end = min((part.at + 1) * job.part_rows, job.tokens * job.heads);
#pragma unroll 1
    for (u32 from = part.at * job.part_rows; from < end; from += groups) {
        const u32 row = from + (threadIdx.x >> job.lane_shift);
        encode_row<ELEMENT>(job, part, row, row < end, threadIdx.x & (lanes - 1), lanes, scales, codes);
    }
}

// As above, where all lies evenly and a row is no more than its lanes have at once: each number is read once, and stays in a register.
template <int ELEMENT> __device__ void encode_rows_evenly(const Job& job, const Part& part, u64 scales, u64 codes) {
    const u32 lanes = 1u << job.row_shift, lane = threadIdx.x & (lanes - 1), group = threadIdx.x >> job.row_shift, groups = THREADS >> job.row_shift;
    const u32 end = min((part.at + 1) * job.part_rows, job.tokens * job.heads);
#pragma unroll 1
    for (u32 from = part.at * job.part_rows; from < end; from += ROWS * groups) {
        Chunk chunks[ROWS][OF_ROW];
        u32 most[ROWS];
        // Who has no row or no chunk reads the last one, which says nothing new of the largest and is not written.
#pragma unroll
        for (u32 at = 0; at < ROWS; at++) {
            const u32 row = min(from + at * groups + group, end - 1), token = job.by_heads.of(row);
            const u64 start = engine_row(job, part, token, row - token * job.heads);
#pragma unroll
            for (u32 of = 0; of < OF_ROW; of++) chunks[at][of] = read_evenly(start + min(of * lanes + lane, job.chunks - 1) * 16);
        }
#pragma unroll
        for (u32 at = 0; at < ROWS; at++) {
#pragma unroll
            for (u32 word = 0; word < 4 * OF_ROW; word += 2) {
                const u32* words = chunks[at][word / 4].word;
                const u32 both = larger<ELEMENT>(words[word % 4] & MAGNITUDE<ELEMENT>, words[word % 4 + 1] & MAGNITUDE<ELEMENT>);
                most[at] = word ? larger<ELEMENT>(most[at], both) : both;
            }
        }
#pragma unroll
        for (u32 apart = 16; apart > 0; apart /= 2)
            if (apart < lanes) {
#pragma unroll
                for (u32 at = 0; at < ROWS; at++) most[at] = larger<ELEMENT>(most[at], __shfl_xor_sync(0xFFFFFFFF, most[at], apart));
            }
        bool are_plain = true;
#pragma unroll
        for (u32 at = 0; at < ROWS; at++) {
            most[at] = largest_of<ELEMENT>(most[at]);
            are_plain &= most[at] < INFINITE<ELEMENT>;
        }
        // Rare: what is not finite is left out of the scales.
        if (__any_sync(0xFFFFFFFF, !are_plain)) {
#pragma unroll 1
            for (u32 row = from + group; row < from + ROWS * groups + group; row += groups) encode_row<ELEMENT>(job, part, row, row < end, lane, lanes, scales, codes);
            continue;
        }
#pragma unroll
        for (u32 at = 0; at < ROWS; at++) {
            const u32 row = from + at * groups + group, half = scale_for<ELEMENT>(most[at]);
            const float inverse = reciprocal(half);
            // Of a row that is not one nothing is written, and a plane is less than 2^32 bytes.
            const u32 to = row * job.head_dim + lane * NUMBERS<ELEMENT>, chunks_left = row < end ? job.chunks - lane : 0;
#pragma unroll
            for (u32 of = 0; of < OF_ROW; of++) {
                const u64 eight = codes_by<ELEMENT, true>(chunks[at][of], inverse);
                if (of * lanes < chunks_left) write_codes_evenly<NUMBERS<ELEMENT>>(codes + (to + of * lanes * NUMBERS<ELEMENT>), eight);
            }
            if (row < end && lane == 0) write_scale_evenly(scales + 2 * row, half);
        }
    }
}

// Of channels: the largest magnitudes that some tokens have, and the reciprocals of scales.
struct Shared {
    uint4 seen[THREADS];
    float4 inverses[2 * COLUMNS];
};

// A scale a channel. A thread has a column, a chunk wide, of some tokens; the more tokens there are, the fewer columns a block of threads has, so that it
// keeps all of up to 128 tokens in registers. Of longer blocks the last tokens are kept and those before read again, from a cache.
template <int ELEMENT, bool EVEN> __device__ void encode_channels(const Job& job, const Part& part, u64 scales, u64 codes, Shared& shared) {
    constexpr u32 EACH = NUMBERS<ELEMENT>, AT_ONCE = EVEN ? KEPT : 1;
    const u32 columns = 1u << job.column_shift, own = threadIdx.x & (columns - 1), group = threadIdx.x >> job.column_shift, groups = THREADS >> job.column_shift;
    const u32 column = (part.at << job.column_shift) + own, wanted = job.by_chunks.of(column), head = min(wanted, job.heads - 1);
    const u32 chunk = column - wanted * job.chunks, numbers = numbers_in<ELEMENT>(job, chunk), tokens = wanted == head ? job.tokens : 0;
    const u32 skip = head * job.head_dim + chunk * EACH, step = AT_ONCE * groups;
    Chunk kept[AT_ONCE];
    // Who has no such token reads the last one.
    const auto read_from = [&](u32 first) {
#pragma unroll
        for (u32 at = 0; at < AT_ONCE; at++) {
            const u64 start = engine_row(job, part, min(first + at * groups + group, job.tokens - 1), head) + chunk * 16;
            kept[at] = EVEN ? read_evenly(start) : read(start, numbers * BYTES<ELEMENT>);
        }
    };
    u32 first = 0;
    bool are_plain = true;
#pragma unroll 1
    for (;;) {
        u32 most[4] = {0, 0, 0, 0};
#pragma unroll 1
        for (first = 0;; first += step) {
            read_from(first);
            if (are_plain) {
#pragma unroll
                for (u32 at = 0; at < AT_ONCE; at++)
#pragma unroll
                    for (u32 word = 0; word < 4; word++) most[word] = larger<ELEMENT>(most[word], kept[at].word[word] & MAGNITUDE<ELEMENT>);
            } else {
#pragma unroll
                for (u32 at = 0; at < AT_ONCE; at++)
#pragma unroll
                    for (u32 word = 0; word < 4; word++) most[word] = larger<ELEMENT>(most[word], finite<ELEMENT>(kept[at].word[word]));
            }
            if (first + step >= job.tokens) break;
        }
        // Those of a warp that have the same column, then those of all warps.
#pragma unroll 1
        for (u32 apart = 16; apart >= columns; apart /= 2)
#pragma unroll
            for (u32 word = 0; word < 4; word++) most[word] = larger<ELEMENT>(most[word], __shfl_xor_sync(0xFFFFFFFF, most[word], apart));
        const u32 wide = max(columns, 32u), slots = THREADS / wide;
        if ((threadIdx.x & (wide - 1)) < columns) shared.seen[threadIdx.x / wide * columns + own] = make_uint4(most[0], most[1], most[2], most[3]);
        __syncthreads();
        bool is_to_be_exact = false;
        if (threadIdx.x < 4 * columns) {
            u32 largest = 0;
#pragma unroll 1
            for (u32 slot = 0; slot < slots; slot += 4)
#pragma unroll
                for (u32 at = 0; at < 4; at++) largest = larger<ELEMENT>(largest, ((const u32*)shared.seen)[(slot + at) * 4 * columns + threadIdx.x]);
            const u32 of = (part.at << job.column_shift) + threadIdx.x / 4, of_head = job.by_chunks.of(of);
            const u32 channel = (of - of_head * job.chunks) * EACH + threadIdx.x % 4 * OF_WORD<ELEMENT>;
            u32 halves = 0;
#pragma unroll
            for (u32 at = 0; at < OF_WORD<ELEMENT>; at++) {
                const u32 magnitude = OF_WORD<ELEMENT> == 1 ? largest : at ? largest >> 16 : largest & 0xFFFF;
                is_to_be_exact |= magnitude >= INFINITE<ELEMENT>;
                const u32 half = scale_for<ELEMENT>(magnitude);
                ((float*)shared.inverses)[threadIdx.x * OF_WORD<ELEMENT> + at] = reciprocal(half);
                halves |= half << (16 * at);
                if (!(EVEN && OF_WORD<ELEMENT> == 2) && of_head < job.heads && channel + at < job.head_dim)
                    write_scale(scales, of_head * job.head_dim + channel + at, half);
            }
            if (EVEN && OF_WORD<ELEMENT> == 2 && of_head < job.heads) write_codes_evenly<4>(scales + 2 * (u64)(of_head * job.head_dim + channel), halves);
        }
        // All over again where something is not finite, which is rare.
        if (!__syncthreads_or(is_to_be_exact) || !are_plain) break;
        are_plain = false;
    }
    float inverses[EACH];
#pragma unroll
    for (u32 four = 0; four < EACH / 4; four++) {
        const float4 all = shared.inverses[own * (EACH / 4) + four];
        inverses[4 * four] = all.x, inverses[4 * four + 1] = all.y, inverses[4 * four + 2] = all.z, inverses[4 * four + 3] = all.w;
    }
#pragma unroll 1
    for (;; first -= step, read_from(first)) {
        if (EVEN && are_plain) {
#pragma unroll
            for (u32 at = 0; at < AT_ONCE; at++) {
                const u32 token = first + at * groups + group;
                const u64 eight = codes_of<ELEMENT, true>(kept[at], inverses);
                if (token < tokens) write_codes_evenly<EACH>(codes + (token * (job.heads * job.head_dim) + skip), eight);
            }
        } else {
#pragma unroll
            for (u32 at = 0; at < AT_ONCE; at++) {
                const u32 token = first + at * groups + group;
                if (token < tokens) write_codes(codes + (u64)token * (job.heads * job.head_dim) + skip, numbers, codes_of<ELEMENT, false>(kept[at], inverses));
            }
        }
        if (first == 0) break;
    }
}

template <int ELEMENT> __device__ void encode(const Job& job) {
    __shared__ Shared shared;
    const u32 parts = parts_of(job), width = job.heads * job.head_dim;
#pragma unroll 1
    for (u32 number = blockIdx.x; number < parts; number += gridDim.x) {
        const Part part = part_of(job, number);
        const u64 scales = job.blocks[part.block] + part.plane.start, codes = scales + 2 * (u64)(part.plane.by_channel ? width : job.tokens * job.heads);
        const bool even = is_even<ELEMENT>(job, part, scales, codes);
        if (part.plane.by_channel) {
            if (even)
                encode_channels<ELEMENT, true>(job, part, scales, codes, shared);
            else
                encode_channels<ELEMENT, false>(job, part, scales, codes, shared);
            // What is shared is shared anew.
            __syncthreads();
        } else if (even && job.chunks <= OF_ROW << job.row_shift) {
            encode_rows_evenly<ELEMENT>(job, part, scales, codes);
        } else {
            encode_rows<ELEMENT>(job, part, scales, codes);
        }
    }
}

__device__ inline float scale_at(u64 scales, u32 at) {
    const u64 address = scales + 2 * (u64)at;
    const u32 half = (address & 1) == 0 ? *(const u16*)address : ((const u8*)address)[0] | (u32)((const u8*)address)[1] << 8;
    return as_float(half << 16);
}

// Scales below this bring no code beyond the largest number of the element.
template <int ELEMENT> constexpr u32 PLAIN_SCALE = ELEMENT == F16 ? 0x4300 : 0x7B00;

// A chunk of numbers out of its codes; `halves` are the scales of the chunk's words, two bf16 each, and of F32 the first two words have all.
template <int ELEMENT> __device__ inline Chunk numbers_of(const u32* codes, const u32* halves) {
    constexpr u32 EACH = NUMBERS<ELEMENT>;
    bool is_plain = true;
    float values[EACH];
#pragma unroll
    for (u32 four = 0; four < EACH / 4; four++) {
        is_plain &= !Code::has_nan(codes[four]);
        Code::values(codes[four], values + 4 * four);
    }
#pragma unroll
    for (u32 word = 0; word < EACH / 2; word++) {
        is_plain &= (halves[word] & 0xFFFF) < PLAIN_SCALE<ELEMENT> && halves[word] < PLAIN_SCALE<ELEMENT> << 16;
        values[2 * word] *= as_float(halves[word] << 16), values[2 * word + 1] *= as_float(halves[word] & 0xFFFF0000);
    }
    Chunk chunk = {{0, 0, 0, 0}};
    if (is_plain) {
#pragma unroll
        for (u32 word = 0; word < 4; word++) chunk.word[word] = ELEMENT == F32 ? as_bits(values[word]) : two_of<ELEMENT>(values[2 * word], values[2 * word + 1]);
    } else {
#pragma unroll
        for (u32 at = 0; at < EACH; at++) {
            const float factor = as_float(at % 2 ? halves[at / 2] & 0xFFFF0000 : halves[at / 2] << 16);
            put<ELEMENT>(chunk, at, number_of<ELEMENT>(Code::value(codes[at / 4] >> (at % 4 * 8) & 0xFF) * factor));
        }
    }
    return chunk;
}

// Where all lies evenly.
template <int ELEMENT> __device__ void decode_evenly(const Job& job, const Part& part, u64 scales, u64 codes) {
    constexpr u32 EACH = NUMBERS<ELEMENT>;
    const Round round(job, part.at);
    const bool by_channel = part.plane.by_channel;
#pragma unroll 1
    for (u32 from = round.first; from < round.end; from += AHEAD * round.groups) {
        u32 words[AHEAD][2];
        // Who has no chunk reads what the first of the part has.
        const auto place_of = [&](u32 ahead) {
            const Place place = round.place(job, from, ahead);
            return place.is_one ? place : Place{part.at * job.part_rows, 0, false};
        };
#pragma unroll
        for (u32 ahead = 0; ahead < AHEAD; ahead++) {
            const Place place = place_of(ahead);
            read_words<EACH / 4>(codes + (u64)place.row * job.head_dim + place.chunk * EACH, words[ahead]);
        }
#pragma unroll
        for (u32 ahead = 0; ahead < AHEAD; ahead++) {
            const Place place = place_of(ahead);
            const u32 token = job.by_heads.of(place.row), head = place.row - token * job.heads;
            u32 halves[EACH / 2];
            if (by_channel) {
                read_words<EACH / 2>(scales + 2 * (u64)(head * job.head_dim + place.chunk * EACH), halves);
            } else {
                const u32 half = *(const u16*)(scales + 2 * (u64)place.row);
#pragma unroll
                for (u32 word = 0; word < EACH / 2; word++) halves[word] = half | half << 16;
            }
            const Chunk chunk = numbers_of<ELEMENT>(words[ahead], halves);
            if (place.is_one) write_evenly(engine_row(job, part, token, head) + place.chunk * 16, chunk);
        }
    }
}

template <int ELEMENT> __device__ void decode(const Job& job) {
    constexpr u32 EACH = NUMBERS<ELEMENT>;
    const u32 parts = parts_of(job), width = job.heads * job.head_dim;
#pragma unroll 1
    for (u32 number = blockIdx.x; number < parts; number += gridDim.x) {
        const Part part = part_of(job, number);
        const bool by_channel = part.plane.by_channel;
        const u64 scales = job.blocks[part.block] + part.plane.start;
        const u64 codes = scales + 2 * (u64)(by_channel ? width : job.tokens * job.heads);
        // Scales of a chunk are read at once.
        if (is_even<ELEMENT>(job, part, scales, codes) && (!by_channel || (scales & (2 * EACH - 1)) == 0)) {
            decode_evenly<ELEMENT>(job, part, scales, codes);
            continue;
        }
        const Round round(job, part.at);
#pragma unroll 1
        for (u32 from = round.first; from < round.end; from += round.groups) {
            const Place place = round.place(job, from, 0);
            if (!place.is_one) continue;
            const u32 token = job.by_heads.of(place.row), head = place.row - token * job.heads, numbers = numbers_in<ELEMENT>(job, place.chunk);
            const u64 word = read_codes(codes + (u64)place.row * job.head_dim + place.chunk * EACH, numbers);
            Chunk chunk = {{0, 0, 0, 0}};
#pragma unroll
            for (u32 at = 0; at < EACH; at++) {
                const u32 channel = head * job.head_dim + place.chunk * EACH + min(at, numbers - 1);
                const float factor = scale_at(scales, by_channel ? channel : place.row);
                put<ELEMENT>(chunk, at, number_of<ELEMENT>(Code::value((u32)(word >> (at * 8)) & 0xFF) * factor));
            }
            write(engine_row(job, part, token, head) + place.chunk * 16, numbers * BYTES<ELEMENT>, chunk);
        }
    }
}

#define ONE(NAME, ELEMENT, DO) \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) NAME(const Job job) { DO<ELEMENT>(job); }
