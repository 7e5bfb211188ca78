// What a kernel finds on a GPU, on the CPU: the threads of a block take turns, each on a stack of its own, and one that waits for others lets them go on.
// Threads that wait for what never comes end the process: a kernel in which some of a warp shuffle and some do not is wrong.

#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>

struct Three {
    unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};
static thread_local Three threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __shared__ static thread_local
#define __launch_bounds__(...)

namespace threads {

constexpr unsigned MOST = 1024, STACK = 64 << 10;

struct Thread {
    jmp_buf at;
    bool is_begun, is_over;
    // What it gives to its warp: this time's and the last one's.
    unsigned long long given[2];
    unsigned shuffles;
    bool is_so;
};

// Those who wait for each other, and how often all of them have come.
struct Meeting {
    unsigned members, come, times;

    void check() {
        if (members > 0 && come == members) come = 0, times++;
    }

    void leave() {
        members--;
        check();
    }
};

struct Block {
    char *stacks = nullptr;
    Thread thread[MOST];
    Meeting warps[MOST / 32], all;
    jmp_buf out;
    unsigned now = 0, left = 0, idle = 0;
    void (*body)(void *) = nullptr;
    void *with = nullptr;

    ~Block() {
        if (stacks) munmap(stacks, (size_t)MOST * STACK);
    }
};
static thread_local Block block;

// Goes on with the next thread that is not over.
[[noreturn]] static void next();

static void entry() {
    block.body(block.with);
    block.thread[block.now].is_over = true;
    block.warps[block.now / 32].leave();
    block.all.leave();
    block.idle = 0;
    if (--block.left == 0) _longjmp(block.out, 1);
    next();
}

static void next() {
    do block.now = (block.now + 1) % blockDim.x;
    while (block.thread[block.now].is_over);
    threadIdx.x = block.now;
    Thread &thread = block.thread[block.now];
    if (thread.is_begun) _longjmp(thread.at, 1);
    thread.is_begun = true;
    ucontext_t fresh;
    getcontext(&fresh);
    fresh.uc_stack.ss_sp = block.stacks + (size_t)block.now * STACK;
    fresh.uc_stack.ss_size = STACK;
    fresh.uc_link = nullptr;
    makecontext(&fresh, entry, 0);
    setcontext(&fresh);
    std::abort();
}

static void meet(Meeting &meeting) {
    const unsigned times = meeting.times;
    meeting.come++;
    meeting.check();
    block.idle = 0;
    while (meeting.times == times) {
        if (block.idle++ > blockDim.x) {
            std::fprintf(stderr, "threads of a block wait for some that do not come\n");
            std::abort();
        }
        if (!_setjmp(block.thread[block.now].at)) next();
    }
    block.idle = 0;
}

// Runs the blocks of a launch, one after the other.
static void launch(unsigned blocks, unsigned count, void (*body)(void *), void *with) {
    if (!block.stacks)
        block.stacks = (char *)mmap(nullptr, (size_t)MOST * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block.stacks == MAP_FAILED || count > MOST) std::abort();
    gridDim.x = blocks;
    blockDim.x = count;
    block.body = body;
    block.with = with;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        for (unsigned at = 0; at < count; at++) block.thread[at].is_begun = block.thread[at].is_over = false;
        for (unsigned warp = 0; warp * 32 < count; warp++) block.warps[warp] = {count - warp * 32 < 32 ? count - warp * 32 : 32, 0, 0};
        block.all = {count, 0, 0};
        block.left = count;
        block.idle = 0;
        block.now = count - 1;
        if (!_setjmp(block.out)) next();
    }
}

template <class T> static T shuffle(T value, unsigned from) {
    const unsigned me = block.now, turn = block.thread[me].shuffles++ % 2;
    unsigned long long given = 0;
    std::memcpy(&given, &value, sizeof value);
    block.thread[me].given[turn] = given;
    meet(block.warps[me / 32]);
    std::memcpy(&value, &block.thread[me / 32 * 32 + from].given[turn], sizeof value);
    return value;
}

}  // namespace threads

static inline void __syncthreads() { threads::meet(threads::block.all); }
template <class T> static inline T __shfl_xor_sync(unsigned, T value, unsigned apart) { return threads::shuffle(value, (threads::block.now % 32) ^ apart); }
template <class T> static inline T __shfl_sync(unsigned, T value, unsigned from) { return threads::shuffle(value, from % 32); }

static inline bool __any_sync(unsigned, bool is_so) {
    unsigned any = is_so;
    for (unsigned apart = 16; apart > 0; apart /= 2) any |= threads::shuffle(any, (threads::block.now % 32) ^ apart);
    return any;
}
static inline bool __syncthreads_or(bool is_so) {
    threads::block.thread[threads::block.now].is_so = is_so;
    __syncthreads();
    bool any = false;
    for (unsigned at = 0; at < blockDim.x; at++) any |= threads::block.thread[at].is_so;
    // Nobody says anew what it says before all have heard.
    __syncthreads();
    return any;
}

static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
static inline unsigned long long __umul64hi(unsigned long long one, unsigned long long other) {
    return (unsigned long long)((unsigned __int128)one * other >> 64);
}
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned order) {
    const unsigned long long all = (unsigned long long)high << 32 | low;
    unsigned made = 0;
    for (unsigned at = 0; at < 4; at++) made |= (unsigned)(all >> (order >> (4 * at) & 7) * 8 & 0xFF) << (8 * at);
    return made;
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
template <class T> static inline T min(T one, T other) { return one < other ? one : other; }
template <class T> static inline T max(T one, T other) { return one > other ? one : other; }
