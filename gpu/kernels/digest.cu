// The digest that a block's header carries, as far as it is worth sharing out: XXH3 of each of a block's pieces of 16 KiB. A warp takes a piece. What
// 1024 bytes add to the eight sums does not depend on the sums, so that all lanes add up 1024 bytes together, 32 bytes each, while the next are on their
// way; the sums are stirred after each 1024 bytes, one after the other.

typedef unsigned char u8;
typedef unsigned u32;
typedef unsigned long long u64;

// Bytes of a block, somewhere.
struct Span {
    u64 address, bytes;
};

constexpr u32 PIECE = 16 << 10, SECTION = 1024, STRIPE = 64, THREADS = 256;

// XXH3's secret as words of 8 bytes; where a word begins in the middle of two it is put together.
__device__ const u64 SECRET[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82,
    0x8e2443f7744608b8, 0x4c263a81e69035e0, 0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8, 0xc3ebd33483acc5ea, 0xeb6313faffa081c5,
    0x49daf0b751dd0d17, 0x9e68d429265516d3, 0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
};

constexpr u64 PRIME32_1 = 0x9E3779B1, PRIME32_2 = 0x85EBCA77, PRIME32_3 = 0xC2B2AE3D;
constexpr u64 PRIME64_1 = 0x9E3779B185EBCA87, PRIME64_2 = 0xC2B2AE3D27D4EB4F, PRIME64_3 = 0x165667B19E3779F9, PRIME64_4 = 0x85EBCA77C2B2AE63,
              PRIME64_5 = 0x27D4EB2F165667C5, MIX_1 = 0x165667919E3779F9, MIX_2 = 0x9FB21C651E98DF25;

// A word of the secret, from any byte on.
__device__ inline u64 secret_at(const u64* secret, u32 at) {
    const u32 shift = at % 8 * 8;
    return shift ? secret[at / 8] >> shift | secret[at / 8 + 1] << (64 - shift) : secret[at / 8];
}

__device__ inline u64 word_at(u64 address, u32 bytes) {
    u64 word = 0;
#pragma unroll 1
    for (u32 left = bytes; left > 0; left--) word = word << 8 | ((const u8*)address)[left - 1];
    return word;
}

struct Two {
    u64 first, second;
};

__device__ inline Two read(u64 address) {
    if ((address & 15) == 0) {
        const ulonglong2 two = *(const ulonglong2*)address;
        return Two{two.x, two.y};
    }
    return Two{word_at(address, 8), word_at(address + 8, 8)};
}

__device__ inline u64 folded(u64 one, u64 other) { return one * other ^ __umul64hi(one, other); }

__device__ inline u64 avalanche(u64 hash) {
    hash = (hash ^ hash >> 37) * MIX_1;
    return hash ^ hash >> 32;
}

__device__ inline u64 mixed(u64 address, const u64* secret, u32 at) {
    return folded(word_at(address, 8) ^ secret_at(secret, at), word_at(address + 8, 8) ^ secret_at(secret, at + 8));
}

// Up to 240 bytes, by one thread: XXH3 has a way of its own for each of a few lengths.
__device__ u64 digest_of_few(u64 from, u32 bytes, const u64* secret) {
    if (bytes <= 3) {
        const u32 first = ((const u8*)from)[0], middle = ((const u8*)from)[bytes / 2], last = ((const u8*)from)[bytes - 1];
        const u64 keyed = (first << 16 | middle << 24 | last | bytes << 8) ^ (u64)((u32)secret[0] ^ (u32)(secret[0] >> 32));
        u64 hash = (keyed ^ keyed >> 33) * PRIME64_2;
        hash = (hash ^ hash >> 29) * PRIME64_3;
        return hash ^ hash >> 32;
    }
    if (bytes <= 8) {
        const u64 both = word_at(from + bytes - 4, 4) + (word_at(from, 4) << 32);
        u64 hash = both ^ secret[1] ^ secret[2];
        hash ^= (hash << 49 | hash >> 15) ^ (hash << 24 | hash >> 40);
        hash *= MIX_2;
        hash ^= (hash >> 35) + bytes;
        hash *= MIX_2;
        return hash ^ hash >> 28;
    }
    if (bytes <= 16) {
        const u64 low = word_at(from, 8) ^ secret[3] ^ secret[4], high = word_at(from + bytes - 8, 8) ^ secret[5] ^ secret[6];
        const u64 turned = (u64)__byte_perm((u32)low, 0, 0x0123) << 32 | __byte_perm((u32)(low >> 32), 0, 0x0123);
        return avalanche(bytes + turned + high + folded(low, high));
    }
    u64 sum = bytes * PRIME64_1;
    if (bytes <= 128) {
#pragma unroll 1
        for (u32 at = (bytes - 1) / 32;; at--) {
            sum += mixed(from + 16 * at, secret, 32 * at) + mixed(from + bytes - 16 * (at + 1), secret, 32 * at + 16);
            if (at == 0) return avalanche(sum);
        }
    }
#pragma unroll 1
    for (u32 at = 0; at < 8; at++) sum += mixed(from + 16 * at, secret, 16 * at);
    sum = avalanche(sum);
#pragma unroll 1
    for (u32 at = 8; at < bytes / 16; at++) sum += mixed(from + 16 * at, secret, 16 * (at - 8) + 3);
    return avalanche(sum + mixed(from + bytes - 16, secret, 136 - 17));
}

// What 16 bytes add to their two sums.
__device__ inline void add(Two& sums, const Two& read, u64 first_secret, u64 second_secret) {
    const u64 first = read.first ^ first_secret, second = read.second ^ second_secret;
    sums.first += read.second + (first & 0xFFFFFFFF) * (first >> 32);
    sums.second += read.first + (second & 0xFFFFFFFF) * (second >> 32);
}

// The same for 16 bytes of a piece that begins at a multiple of so many.
__device__ inline Two read_evenly(u64 address) {
#ifdef __CUDA_ARCH__
    Two two;
    asm volatile("ld.global.nc.v2.u64 {%0, %1}, [%2];" : "=l"(two.first), "=l"(two.second) : "l"(address));
    return two;
#else
    return read(address);
#endif
}

// Adds what all lanes of a column have. Half of them take its first sum, half its second one: a lane has one of the eight from here on.
__device__ inline u64 sum_of_lanes(const Two& own, bool has_second) {
    const u64 given = has_second ? own.first : own.second;
    u64 sum = (has_second ? own.second : own.first) + __shfl_xor_sync(0xFFFFFFFF, given, 4);
    sum += __shfl_xor_sync(0xFFFFFFFF, sum, 8);
    return sum + __shfl_xor_sync(0xFFFFFFFF, sum, 16);
}

__device__ inline u64 stirred(u64 sum, u64 secret) { return (sum ^ sum >> 47 ^ secret) * PRIME32_1; }

// Sections whose reads are under way at the same time.
constexpr u32 AHEAD = 4;

// More than 240 bytes, by a warp. It reads 512 bytes side by side, as memory brings them: a lane has a sixteenth part of a stripe's two sums, of two stripes
// of each section, under the same secrets in every one.
__device__ u64 digest_of_many(u64 from, u32 bytes, const u64* secret) {
    const u32 lane = threadIdx.x % 32, column = lane % 4, stripe = lane / 4;
    const bool has_second = stripe % 2;
    // The last section is never whole: its last stripe is taken by itself, under secrets of its own, and may have bytes of the one before it.
    const u32 last = (bytes - 1) / SECTION, stripes = (bytes - 1) % SECTION / STRIPE, at_end = 192 - STRIPE - 7 + column * 16;
    const u64 of_low[2] = {secret[2 * column + stripe], secret[2 * column + stripe + 1]};
    const u64 of_high[2] = {secret[2 * column + stripe + 8], secret[2 * column + stripe + 9]};
    const u64 of_end[2] = {secret_at(secret, at_end), secret_at(secret, at_end + 8)};
    const u64 to_stir = secret[16 + 2 * column + has_second];
    u64 sum = column == 0   ? (has_second ? PRIME64_1 : PRIME32_3)
              : column == 1 ? (has_second ? PRIME64_3 : PRIME64_2)
              : column == 2 ? (has_second ? PRIME32_2 : PRIME64_4)
                            : (has_second ? PRIME32_1 : PRIME64_5);
    const u64 start = from + lane * 16;
    if (bytes == PIECE && (from & 15) == 0) {
        // The last stripe is that of the last lanes.
        constexpr u32 SECTIONS = PIECE / SECTION;
#pragma unroll 1
        for (u32 first = 0; first < SECTIONS; first += AHEAD) {
            Two read[2 * AHEAD];
#pragma unroll
            for (u32 half = 0; half < 2 * AHEAD; half++) read[half] = read_evenly(start + first * SECTION + half * (SECTION / 2));
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ahead++) {
                const bool is_last = ahead + 1 == AHEAD && first + AHEAD == SECTIONS, is_end = is_last && stripe == 7;
                Two own = {0, 0};
                add(own, read[2 * ahead], of_low[0], of_low[1]);
                add(own, read[2 * ahead + 1], is_end ? of_end[0] : of_high[0], is_end ? of_end[1] : of_high[1]);
                sum += sum_of_lanes(own, has_second);
                if (!is_last) sum = stirred(sum, to_stir);
            }
        }
    } else {
#pragma unroll 1
        for (u32 section = 0; section <= last; section++) {
            const u32 count = section < last ? SECTION / STRIPE : stripes;
            Two own = {0, 0};
            if (stripe < count) add(own, read(start + section * SECTION), of_low[0], of_low[1]);
            if (stripe + 8 < count) add(own, read(start + section * SECTION + SECTION / 2), of_high[0], of_high[1]);
            if (section == last && stripe == 0) add(own, read(from + bytes - STRIPE + column * 16), of_end[0], of_end[1]);
            sum += sum_of_lanes(own, has_second);
            if (section < last) sum = stirred(sum, to_stir);
        }
    }
    // Who has the first sum of a column gets the second one.
    const u64 other = __shfl_xor_sync(0xFFFFFFFF, sum, 4);
    const u32 at = 11 + column * 16;
    u64 all = folded((has_second ? other : sum) ^ secret_at(secret, at), (has_second ? sum : other) ^ secret_at(secret, at + 8));
    all += __shfl_xor_sync(0xFFFFFFFF, all, 1);
    all += __shfl_xor_sync(0xFFFFFFFF, all, 2);
    return avalanche(all + bytes * PRIME64_1);
}

// Writes the digests of all pieces of some blocks, `most` places each.
extern "C" __global__ void __launch_bounds__(THREADS, 3) kvhive_digest(const Span* spans, u64* digests, u32 count, u32 most) {
    __shared__ u64 secret[24];
    if (threadIdx.x < 24) secret[threadIdx.x] = SECRET[threadIdx.x];
    __syncthreads();
    const u32 warps = gridDim.x * (THREADS / 32), all = count * most;
    for (u32 at = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; at < all; at += warps) {
        const Span span = spans[at / most];
        const u64 skip = (u64)(at % most) * PIECE;
        if (skip >= span.bytes) continue;
        const u32 bytes = (u32)min(span.bytes - skip, (u64)PIECE);
        u64 digest = 0;
        if (bytes > 240)
            digest = digest_of_many(span.address + skip, bytes, secret);
        else if (threadIdx.x % 32 == 0)
            digest = digest_of_few(span.address + skip, bytes, secret);
        if (threadIdx.x % 32 == 0) digests[at] = digest;
    }
}
