// The kernels, run by the CPU: one thread of a block after the other, as none of them waits for another.

struct Three {
    unsigned x = 1, y = 1, z = 1;
};
struct uint4 {
    unsigned x, y, z, w;
};
static thread_local Three threadIdx, blockIdx, blockDim, gridDim;
#define __global__

#include "../../kernels/copy.cu"

#include <cstring>

/* Returns a number for a kernel of this name; 0 where there is none. */
extern "C" int kernel_number(const char *name) { return std::strcmp(name, "kvhive_copy") == 0; }

extern "C" void kernel_run(int number, unsigned blocks, unsigned threads, void **arguments) {
    (void)number;
    gridDim.x = blocks;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
            kvhive_copy(*(const Piece **)arguments[0], *(unsigned *)arguments[1]);
}
