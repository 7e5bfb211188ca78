// Between pages and blocks of int4: gpu/src/codec/four.rs is the reference. A block of 128 threads does a tile at a time: its numbers are brought into
// shared memory as binary32, a thread looks at a group, and the tile's bytes are put together there before they are written. A whole tile, which has 32
// tokens of 128 channels, is encoded by code that knows so.

#include "pages.cuh"

constexpr u32 THREADS_OF_TILE = 128, WARPS = THREADS_OF_TILE / 32;
constexpr u32 TILE_TOKENS = 32, TILE_CHANNELS = 128, GROUPS = 128, CHANNEL_TOKENS = 16;
// Exponent, scales, zero points and codes of a whole tile.
constexpr u32 TILE_BYTES = 1 + GROUPS / 2 + GROUPS + TILE_TOKENS * TILE_CHANNELS / 2;
constexpr float LARGEST = 127.0f;
constexpr u32 NAN_ZERO = 0x80, BY_TOKEN = 1;

// How a tile's numbers are grouped: `channels` consecutive ones of a token, or, where that is 0, one of all tokens.
struct Grouping {
    u32 channels, bits;

    __device__ u32 groups(u32 tokens, u32 of) const { return channels ? tokens * ((of + channels - 1) / channels) : of; }
    __device__ u32 largest_code() const { return bits == 3 ? 7 : 15; }
};

// The grouping that draws go to, and the other one, if a tile may have another.
struct Choices {
    Grouping usual, other;
    bool has_other;
};

__device__ inline Choices choices(bool keys, u32 tokens) {
    const Grouping by_channel{0, 4}, by_token{32, 4}, by_token_of_short{64, 4}, three_bits{0, 3};
    if (tokens == TILE_TOKENS) return keys ? Choices{by_channel, by_token, true} : Choices{by_token, by_channel, true};
    if (tokens >= CHANNEL_TOKENS) return keys ? Choices{by_channel, by_channel, false} : Choices{by_token_of_short, three_bits, true};
    return Choices{by_token_of_short, by_token_of_short, false};
}

// Where the parts of a tile start.
struct Layout {
    u32 groups, zeros, codes, row;

    __device__ Layout(const Grouping& grouping, u32 tokens, u32 channels) {
        groups = grouping.groups(tokens, channels);
        zeros = 1 + (groups + 1) / 2;
        codes = zeros + groups;
        row = (channels * grouping.bits + 7) / 8;
    }
};

__device__ inline u32 bytes_of(const Grouping& grouping, u32 tokens, u32 channels) {
    const Layout layout(grouping, tokens, channels);
    return layout.codes + tokens * layout.row;
}

__device__ inline u32 tile_bytes(bool keys, u32 tokens, u32 channels) {
    const Choices may = choices(keys, tokens);
    const u32 bytes = bytes_of(may.usual, tokens, channels);
    return may.has_other ? max(bytes, bytes_of(may.other, tokens, channels)) : bytes;
}

// A tile's place in its plane, and where it is stored.
struct Tile {
    u32 token, head, channel, tokens, channels, bytes;
    u64 stored;

    __device__ Tile(const Job& job, const Part& part) {
        const bool keys = part.plane.keys;
        const u32 columns = (job.head_dim + TILE_CHANNELS - 1) / TILE_CHANNELS, of_token = columns * job.heads;
        const u32 row = part.at / of_token, column = part.at % columns;
        token = row * TILE_TOKENS;
        head = part.at / columns % job.heads;
        channel = column * TILE_CHANNELS;
        tokens = min(TILE_TOKENS, job.tokens - token);
        channels = min(TILE_CHANNELS, job.head_dim - channel);
        bytes = tile_bytes(keys, tokens, channels);
        // Those before it: whole rows of tiles, heads of this one, tiles of this head.
        const u32 wide = job.head_dim / TILE_CHANNELS, rest = job.head_dim % TILE_CHANNELS;
        const u64 whole_row = (u64)job.heads * (wide * tile_bytes(keys, TILE_TOKENS, TILE_CHANNELS) + (rest ? tile_bytes(keys, TILE_TOKENS, rest) : 0));
        const u64 whole = tile_bytes(keys, tokens, TILE_CHANNELS);
        stored = job.blocks[part.block] + part.plane.start + row * whole_row + head * (wide * whole + (rest ? tile_bytes(keys, tokens, rest) : 0)) + column * whole;
    }
};

// In a whole tile both groupings have as many groups, of as many numbers. Before its bytes are some that are not its own, so that its codes begin with a word.
constexpr u32 WHOLE_CODES = 1 + GROUPS / 2 + GROUPS, WHOLE_SKIP = 3, WHOLE_CHANNELS = 32;

// What the threads of a block share.
struct Shared {
    float4 values_by_four[TILE_TOKENS * TILE_CHANNELS / 4];
    // Room for a word beyond them too.
    u32 words[(WHOLE_SKIP + TILE_BYTES + 7) / 4];
    // Of each group, under each of the two groupings.
    float low[2][GROUPS];
    int levels[2][GROUPS];
    bool has_nan[2][GROUPS];
    float4 factors_by_four[GROUPS / 4], zeros_by_four[GROUPS / 4];
    u8 nibbles[GROUPS];
    int highest[2][WARPS];
    u64 costs[2][WARPS];

    __device__ float* values() { return (float*)values_by_four; }
    __device__ const float* values() const { return (const float*)values_by_four; }
    __device__ float* factors() { return (float*)factors_by_four; }
    __device__ const float* factors() const { return (const float*)factors_by_four; }
    __device__ float* zeros() { return (float*)zeros_by_four; }
    __device__ const float* zeros() const { return (const float*)zeros_by_four; }
};

__device__ inline float scale(u32 exponent, u32 nibble) {
    // Only damaged bytes reach the limit; it keeps what they decode to finite.
    return as_float(min(exponent + (nibble >> 1), 254u) << 23 | (nibble & 1) << 22);
}

__device__ inline u32 exponent_for(int highest, bool has_choice) {
    const u32 exponent = (u32)max((highest - 14) >> 1, 1);
    return has_choice ? exponent + exponent % 2 : exponent;
}

__device__ inline u32 nibble_for(int level, u32 exponent) { return (u32)min(max(level - 2 * (int)exponent, 0), 15); }

// Looks at 32 numbers: the least, the largest, and the largest magnitude of all, as bits.
template <u32 STEP> __device__ inline void look(const float* first, u32 turn, float& low, float& high, u32& worst) {
#pragma unroll 8
    for (u32 done = 0; done < TILE_TOKENS; done++) {
        const float value = first[((turn + done) & (TILE_TOKENS - 1)) * STEP];
        low = fminf(low, value);
        high = fmaxf(high, value);
        worst = max(worst, as_bits(value) & 0x7FFFFFFF);
    }
}

// Looks at a thread's group: its least value, whether it has a NaN, and the first scale that is not under the step that spans it.
template <bool WHOLE> __device__ void fit(Shared& shared, u32 which, const Grouping& grouping, const Tile& tile) {
    const u32 group = threadIdx.x;
    if (group >= grouping.groups(tile.tokens, tile.channels)) return;
    u32 first = group, step = TILE_CHANNELS, count = tile.tokens, turn = 0;
    if (grouping.channels) {
        const u32 each = (tile.channels + grouping.channels - 1) / grouping.channels, at = group % each * grouping.channels;
        first = group / each * TILE_CHANNELS + at;
        step = 1;
        count = min(grouping.channels, tile.channels - at);
        // Threads of a warp begin at different numbers, which lie in different banks.
        turn = group % count;
    }
    float low = as_float(0x7F800000), high = as_float(0xFF800000);
    bool has_nan = false;
    u32 worst = 0x7F800000;
    if (WHOLE) {
        worst = 0;
        if (grouping.channels)
            look<1>(shared.values() + group * WHOLE_CHANNELS, turn, low, high, worst);
        else
            look<TILE_CHANNELS>(shared.values() + group, 0, low, high, worst);
        if (worst >= 0x7F800000) low = as_float(0x7F800000), high = as_float(0xFF800000);
    }
    // Where all are finite, that was it: which of two zeros is the least makes no difference.
    if (worst < 0x7F800000) count = 0;
#pragma unroll 1
    for (u32 done = 0; done < count; done++) {
        const float value = shared.values()[first + turn * step];
        turn = turn + 1 == count ? 0 : turn + 1;
        const bool is_finite = fabsf(value) < as_float(0x7F800000);
        if (is_finite && value < low) low = value;
        if (is_finite && value > high) high = value;
        has_nan |= value != value;
    }
    if (low > high) low = high = 0.0f;
    // Apart first: their difference may overflow.
    const float most = (float)grouping.largest_code();
    const float spanning = high / most - low / most, reaching = fmaxf(fabsf(low), fabsf(high)) / LARGEST;
    const float needed = spanning > reaching ? spanning : reaching;
    shared.low[which][group] = low;
    shared.has_nan[which][group] = has_nan;
    shared.levels[which][group] = ((int)as_bits(needed) + 0x3FFFFF) >> 22;
}

// The highest level of all groups; every thread of the block asks.
__device__ int highest_of(Shared& shared, u32 which, u32 groups) {
    int most = threadIdx.x < groups ? shared.levels[which][threadIdx.x] : 0;
    for (u32 apart = 16; apart > 0; apart /= 2) most = max(most, __shfl_xor_sync(0xFFFFFFFF, most, apart));
    if (threadIdx.x % 32 == 0) shared.highest[which][threadIdx.x / 32] = most;
    __syncthreads();
    for (u32 warp = 0; warp < WARPS; warp++) most = max(most, shared.highest[which][warp]);
    return most;
}

// The summed squares of the scales, each as often as its group has numbers; every thread of the block asks.
__device__ u64 cost_of(Shared& shared, u32 which, const Grouping& grouping, const Tile& tile, u32 exponent) {
    u64 sum = 0;
    if (threadIdx.x < grouping.groups(tile.tokens, tile.channels)) {
        const u32 nibble = nibble_for(shared.levels[which][threadIdx.x], exponent), halves = 2 + (nibble & 1);
        u32 numbers = tile.tokens;
        if (grouping.channels) {
            const u32 each = (tile.channels + grouping.channels - 1) / grouping.channels;
            numbers = min(grouping.channels, tile.channels - threadIdx.x % each * grouping.channels);
        }
        sum = ((u64)(halves * halves) << (nibble >> 1 << 1)) * numbers;
    }
    for (u32 apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, apart);
    if (threadIdx.x % 32 == 0) shared.costs[which][threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (u32 warp = 0; warp < WARPS; warp++) sum += shared.costs[which][warp];
    return sum;
}

__device__ inline u32 group_of(const Grouping& grouping, const Tile& tile, u32 token, u32 channel) {
    if (!grouping.channels) return channel;
    return token * ((tile.channels + grouping.channels - 1) / grouping.channels) + channel / grouping.channels;
}

// The code of a number of the tile; 0 for NaN, whose group says that it is one.
__device__ inline u32 code_at(const Shared& shared, const Grouping& grouping, const Tile& tile, u32 token, u32 channel) {
    const u32 group = group_of(grouping, tile, token, channel);
    const float zero = shared.zeros()[group], scaled = shared.values()[token * TILE_CHANNELS + channel] * shared.factors()[group];
    const float value = fmaxf(fminf(scaled, zero + (float)grouping.largest_code()), zero);
    return scaled != scaled ? 0 : (as_bits(value + ROUNDER) - as_bits(zero + ROUNDER)) & 15;
}

// Copies a tile's bytes out of shared memory, in words where they begin in the middle of one.
__device__ inline void write_tile(u64 to, const u8* bytes, u32 count) {
    const u32 before = min((u32)(0 - to) & 3, count), words = (count - before) / 4;
    if (threadIdx.x < before) ((u8*)to)[threadIdx.x] = bytes[threadIdx.x];
    for (u32 word = threadIdx.x; word < words; word += THREADS_OF_TILE) {
        const u8* four = bytes + before + 4 * word;
        ((u32*)(to + before))[word] = four[0] | four[1] << 8 | four[2] << 16 | (u32)four[3] << 24;
    }
    const u32 rest = before + 4 * words + threadIdx.x;
    if (rest < count) ((u8*)to)[rest] = bytes[rest];
}

// The same for a whole tile, whose bytes lie in words: each word is put together of two.
__device__ inline void write_whole_tile(u64 to, const u32* from, u32 count) {
    const u8* bytes = (const u8*)from + WHOLE_SKIP;
    const u32 before = min((u32)(0 - to) & 3, count), words = (count - before) / 4, first = WHOLE_SKIP + before, shift = first % 4 * 8;
    if (threadIdx.x < before) ((u8*)to)[threadIdx.x] = bytes[threadIdx.x];
    for (u32 word = threadIdx.x; word < words; word += THREADS_OF_TILE) {
        const u32 low = from[first / 4 + word], high = from[first / 4 + word + 1];
        write_codes_evenly<4>(to + before + 4 * word, ((u64)high << 32 | low) >> shift);
    }
    const u32 rest = before + 4 * words + threadIdx.x;
    if (rest < count) ((u8*)to)[rest] = bytes[rest];
}

// Writes eight codes at a time of a whole tile that is grouped by channel or by token. NaN, of which only a group of NaN is scaled to, comes to 0.
template <bool BY_CHANNEL> __device__ inline void write_codes_of_whole(Shared& shared) {
    constexpr u32 EIGHTS = TILE_CHANNELS / 8;
    const u32 eight = threadIdx.x % EIGHTS;
    float factors[8], zeros[8];
    const auto read_groups = [&](u32 group) {
#pragma unroll
        for (u32 at = 0; at < 8; at++) factors[at] = shared.factors()[BY_CHANNEL ? group + at : group], zeros[at] = shared.zeros()[BY_CHANNEL ? group + at : group];
    };
    if (BY_CHANNEL) read_groups(8 * eight);
#pragma unroll 1
    for (u32 token = threadIdx.x / EIGHTS; token < TILE_TOKENS; token += THREADS_OF_TILE / EIGHTS) {
        if (!BY_CHANNEL) read_groups(token * (TILE_CHANNELS / WHOLE_CHANNELS) + eight / (WHOLE_CHANNELS / 8));
        const float4 low = shared.values_by_four[(token * EIGHTS + eight) * 2], high = shared.values_by_four[(token * EIGHTS + eight) * 2 + 1];
        const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        u32 word = 0;
#pragma unroll
        for (u32 at = 0; at < 8; at++) {
            const float value = fminf(fmaxf(values[at] * factors[at], zeros[at]), zeros[at] + 15.0f);
            word |= (as_bits(value + ROUNDER) - as_bits(zeros[at] + ROUNDER)) << (4 * at);
        }
        shared.words[(WHOLE_SKIP + WHOLE_CODES) / 4 + token * EIGHTS + eight] = word;
    }
}

__device__ inline void read_tile(u64 from, u8* bytes, u32 count) {
    const u32 before = min((u32)(0 - from) & 3, count), words = (count - before) / 4;
    if (threadIdx.x < before) bytes[threadIdx.x] = ((const u8*)from)[threadIdx.x];
    for (u32 word = threadIdx.x; word < words; word += THREADS_OF_TILE) {
        const u32 all = ((const u32*)(from + before))[word];
        u8* four = bytes + before + 4 * word;
        four[0] = (u8)all, four[1] = (u8)(all >> 8), four[2] = (u8)(all >> 16), four[3] = (u8)(all >> 24);
    }
    const u32 rest = before + 4 * words + threadIdx.x;
    if (rest < count) bytes[rest] = ((const u8*)from)[rest];
}

// Brings a tile's numbers into shared memory.
template <int ELEMENT> __device__ inline void bring(const Job& job, const Part& part, const Tile& tile, Shared& shared) {
    constexpr u32 EACH = NUMBERS<ELEMENT>;
    const u32 chunks = (tile.channels + EACH - 1) / EACH;
#pragma unroll 1
    for (u32 at = threadIdx.x; at < tile.tokens * chunks; at += THREADS_OF_TILE) {
        const u32 token = at / chunks, channel = at % chunks * EACH, numbers = min(EACH, tile.channels - channel);
        const u64 engine = engine_row(job, part, tile.token + token, tile.head) + (tile.channel + channel) * BYTES<ELEMENT>;
        const Chunk chunk = read(engine, numbers * BYTES<ELEMENT>);
#pragma unroll
        for (u32 one = 0; one < EACH; one++) shared.values()[token * TILE_CHANNELS + channel + one] = value_of<ELEMENT>(bits_at<ELEMENT>(chunk, one));
    }
}

// The same of a whole tile, whose chunks begin at multiples of 16 bytes.
template <int ELEMENT> __device__ inline void bring_whole(const Job& job, const Part& part, const Tile& tile, Shared& shared) {
    constexpr u32 EACH = NUMBERS<ELEMENT>, CHUNKS = TILE_CHANNELS / EACH;
#pragma unroll 1
    for (u32 from = threadIdx.x; from < TILE_TOKENS * CHUNKS; from += AHEAD * THREADS_OF_TILE) {
        Chunk chunks[AHEAD];
#pragma unroll
        for (u32 ahead = 0; ahead < AHEAD; ahead++) {
            const u32 at = from + ahead * THREADS_OF_TILE;
            chunks[ahead] = read_evenly(engine_row(job, part, tile.token + at / CHUNKS, tile.head) + (tile.channel * BYTES<ELEMENT> + at % CHUNKS * 16));
        }
#pragma unroll
        for (u32 ahead = 0; ahead < AHEAD; ahead++) {
            const u32 at = from + ahead * THREADS_OF_TILE;
#pragma unroll
            for (u32 four = 0; four < EACH / 4; four++) {
                float4 values;
                values.x = value_of<ELEMENT>(bits_at<ELEMENT>(chunks[ahead], 4 * four));
                values.y = value_of<ELEMENT>(bits_at<ELEMENT>(chunks[ahead], 4 * four + 1));
                values.z = value_of<ELEMENT>(bits_at<ELEMENT>(chunks[ahead], 4 * four + 2));
                values.w = value_of<ELEMENT>(bits_at<ELEMENT>(chunks[ahead], 4 * four + 3));
                shared.values_by_four[at * (EACH / 4) + four] = values;
            }
        }
    }
}

template <int ELEMENT, bool WHOLE> __device__ void encode_tile(const Job& job, const Part& part, Tile tile, Shared& shared) {
    u8* const bytes = (u8*)shared.words + (WHOLE ? WHOLE_SKIP : 0);
    if (WHOLE) {
        tile.tokens = TILE_TOKENS, tile.channels = TILE_CHANNELS;
        bring_whole<ELEMENT>(job, part, tile, shared);
    } else {
        bring<ELEMENT>(job, part, tile, shared);
    }
    __syncthreads();
    const Choices may = choices(part.plane.keys, tile.tokens);
    fit<WHOLE>(shared, 0, may.usual, tile);
    if (may.has_other) fit<WHOLE>(shared, 1, may.other, tile);
    __syncthreads();
    int highest = highest_of(shared, 0, may.usual.groups(tile.tokens, tile.channels));
    u32 which = 0;
    if (may.has_other) {
        const int highest_of_other = highest_of(shared, 1, may.other.groups(tile.tokens, tile.channels));
        const u32 exponent = exponent_for(max(highest, highest_of_other), true);
        if (cost_of(shared, 1, may.other, tile, exponent) < cost_of(shared, 0, may.usual, tile, exponent)) {
            which = 1;
            highest = highest_of_other;
        }
    }
    const Grouping grouping = which ? may.other : may.usual;
    const Layout layout(grouping, tile.tokens, tile.channels);
    const u32 exponent = exponent_for(highest, may.has_other), group = threadIdx.x;
    if (group < layout.groups) {
        const u32 nibble = nibble_for(shared.levels[which][group], exponent);
        const bool has_nan = shared.has_nan[which][group];
        const float inverse = has_nan ? 0.0f : 1.0f / scale(exponent, nibble);
        const float zero = has_nan ? 0.0f : (shared.low[which][group] * inverse + ROUNDER) - ROUNDER;
        shared.factors()[group] = inverse;
        shared.zeros()[group] = zero;
        shared.nibbles[group] = (u8)nibble;
        bytes[layout.zeros + group] = has_nan ? NAN_ZERO : (u8)(int)zero;
    }
    if (group == 0) bytes[0] = (u8)(exponent | (may.has_other && grouping.channels ? BY_TOKEN : 0));
    __syncthreads();
    for (u32 at = 2 * threadIdx.x; at < layout.groups; at += 2 * THREADS_OF_TILE)
        bytes[1 + at / 2] = (u8)(shared.nibbles[at] | (at + 1 < layout.groups ? shared.nibbles[at + 1] << 4 : 0));
    if (WHOLE) {
        if (grouping.channels)
            write_codes_of_whole<false>(shared);
        else
            write_codes_of_whole<true>(shared);
    } else if (grouping.bits == 4) {
        for (u32 at = threadIdx.x; at < tile.tokens * layout.row; at += THREADS_OF_TILE) {
            const u32 token = at / layout.row, channel = at % layout.row * 2;
            u32 two = code_at(shared, grouping, tile, token, channel);
            if (channel + 1 < tile.channels) two |= code_at(shared, grouping, tile, token, channel + 1) << 4;
            bytes[layout.codes + at] = (u8)two;
        }
    } else {
        // Eight codes are three bytes.
        const u32 eights = (tile.channels + 7) / 8;
        for (u32 at = threadIdx.x; at < tile.tokens * eights; at += THREADS_OF_TILE) {
            const u32 token = at / eights, first = at % eights;
            u32 word = 0;
            for (u32 code = 0; code < min(8u, tile.channels - first * 8); code++) word |= code_at(shared, grouping, tile, token, first * 8 + code) << (3 * code);
            for (u32 byte = 0; byte < min(3u, layout.row - first * 3); byte++) bytes[layout.codes + token * layout.row + first * 3 + byte] = (u8)(word >> (8 * byte));
        }
    }
    // A whole tile has as many bytes under either grouping.
    for (u32 at = layout.codes + tile.tokens * layout.row + threadIdx.x; at < tile.bytes; at += THREADS_OF_TILE) bytes[at] = 0;
    __syncthreads();
    if (WHOLE)
        write_whole_tile(tile.stored, shared.words, WHOLE_CODES + TILE_TOKENS * TILE_CHANNELS / 2);
    else
        write_tile(tile.stored, bytes, tile.bytes);
    __syncthreads();
}

template <int ELEMENT> __device__ void encode(const Job& job) {
    __shared__ Shared shared;
    const u32 parts = parts_of(job);
#pragma unroll 1
    for (u32 number = blockIdx.x; number < parts; number += gridDim.x) {
        const Part part = part_of(job, number);
        const Tile tile(job, part);
        const u64 all = part.plane.base | part.plane.page_bytes | job.token_bytes | job.head_bytes;
        if ((all & 15) == 0 && tile.tokens == TILE_TOKENS && tile.channels == TILE_CHANNELS)
            encode_tile<ELEMENT, true>(job, part, tile, shared);
        else
            encode_tile<ELEMENT, false>(job, part, tile, shared);
    }
}

template <int ELEMENT> __device__ void decode(const Job& job) {
    constexpr u32 EACH = NUMBERS<ELEMENT>;
    __shared__ u8 bytes[TILE_BYTES];
    __shared__ float factors[GROUPS], zeros[GROUPS];
    const u32 parts = parts_of(job);
    for (u32 number = blockIdx.x; number < parts; number += gridDim.x) {
        const Part part = part_of(job, number);
        const Tile tile(job, part);
        read_tile(tile.stored, bytes, tile.bytes);
        __syncthreads();
        const Choices may = choices(part.plane.keys, tile.tokens);
        const bool by_token = bytes[0] & BY_TOKEN;
        const Grouping grouping = may.has_other && (may.other.channels != 0) == by_token ? may.other : may.usual;
        const Layout layout(grouping, tile.tokens, tile.channels);
        const u32 exponent = may.has_other ? bytes[0] & ~BY_TOKEN : bytes[0], group = threadIdx.x;
        if (group < layout.groups) {
            const u32 zero = bytes[layout.zeros + group];
            zeros[group] = (float)(signed char)zero;
            factors[group] = zero == NAN_ZERO ? as_float(0x7FC00000) : scale(exponent, bytes[1 + group / 2] >> (group % 2 * 4) & 15);
        }
        __syncthreads();
        const u32 chunks = (tile.channels + EACH - 1) / EACH;
        for (u32 at = threadIdx.x; at < tile.tokens * chunks; at += THREADS_OF_TILE) {
            const u32 token = at / chunks, channel = at % chunks * EACH, numbers = min(EACH, tile.channels - channel);
            const u8* row = bytes + layout.codes + token * layout.row;
            Chunk chunk = {{0, 0, 0, 0}};
#pragma unroll
            for (u32 one = 0; one < EACH; one++) {
                const u32 bit = (channel + one) * grouping.bits;
                // A code of three bits may be in two bytes.
                const u32 code = one < numbers ? (row[bit / 8] | (bit % 8 > 8 - grouping.bits ? row[bit / 8 + 1] << 8 : 0)) >> (bit % 8) & grouping.largest_code() : 0;
                const u32 of = group_of(grouping, tile, token, min(channel + one, tile.channels - 1));
                put<ELEMENT>(chunk, one, number_of<ELEMENT>((zeros[of] + (float)code) * factors[of]));
            }
            write(engine_row(job, part, tile.token + token, tile.head) + (tile.channel + channel) * BYTES<ELEMENT>, numbers * BYTES<ELEMENT>, chunk);
        }
        __syncthreads();
    }
}

#define ONE_OF_TILES(NAME, ELEMENT, DO) \
    extern "C" __global__ void __launch_bounds__(THREADS_OF_TILE) NAME(const Job job) { DO<ELEMENT>(job); }

ONE_OF_TILES(kvhive_gather_int4_f16, F16, encode)
ONE_OF_TILES(kvhive_gather_int4_bf16, BF16, encode)
ONE_OF_TILES(kvhive_gather_int4_f32, F32, encode)
ONE_OF_TILES(kvhive_scatter_int4_f16, F16, decode)
ONE_OF_TILES(kvhive_scatter_int4_bf16, BF16, decode)
ONE_OF_TILES(kvhive_scatter_int4_f32, F32, decode)
