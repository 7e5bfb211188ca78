// Between pages and raw blocks: bytes go as they are, one head of one token at a time.

#include "pages.cuh"

template <bool GATHER> __device__ void move(const Job& job) {
    const u32 bytes = job.element == F32 ? 4 : 2, row = job.head_dim * bytes, parts = parts_of(job);
    for (u32 number = blockIdx.x; number < parts; number += gridDim.x) {
        const Part part = part_of(job, number);
        const Round round(job, part.at);
        const u64 block = job.blocks[part.block] + part.plane.start;
        for (u32 from = round.first; from < round.end; from += AHEAD * round.groups) {
            Chunk chunks[AHEAD];
            u64 to[AHEAD];
            u32 sizes[AHEAD];
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ahead++) {
                const Place place = round.place(job, from, ahead);
                sizes[ahead] = 0;
                if (!place.is_one) continue;
                const u32 token = job.by_heads.of(place.row), head = place.row - token * job.heads, skip = place.chunk * 16;
                const u64 engine = engine_row(job, part, token, head) + skip;
                const u64 stored = block + token * job.row_bytes + head * row + skip;
                sizes[ahead] = min(16u, row - skip);
                chunks[ahead] = read(GATHER ? engine : stored, sizes[ahead]);
                to[ahead] = GATHER ? stored : engine;
            }
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ahead++)
                if (sizes[ahead]) write(to[ahead], sizes[ahead], chunks[ahead]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) kvhive_gather_raw(const Job job) { move<true>(job); }
extern "C" __global__ void __launch_bounds__(THREADS) kvhive_scatter_raw(const Job job) { move<false>(job); }
