// Copies pieces of memory, each by a block of threads: where a copy engine would take longer to be told of a piece than to copy it.
// Both ends are anything that the GPU reaches, pinned memory of the host too.

struct Piece {
    unsigned long long from, to, bytes;
};

extern "C" __global__ void kvhive_copy(const Piece* pieces, unsigned count) {
    for (unsigned at = blockIdx.x; at < count; at += gridDim.x) {
        const Piece piece = pieces[at];
        if (((piece.from | piece.to | piece.bytes) & 15) == 0) {
            const uint4* from = (const uint4*)piece.from;
            uint4* to = (uint4*)piece.to;
            const unsigned words = (unsigned)(piece.bytes >> 4), step = blockDim.x;
            unsigned word = threadIdx.x;
            // Four loads are under way before the first is waited for: the host's memory is far.
            for (; word + 3 * step < words; word += 4 * step) {
                const uint4 a = from[word], b = from[word + step], c = from[word + 2 * step], d = from[word + 3 * step];
                to[word] = a;
                to[word + step] = b;
                to[word + 2 * step] = c;
                to[word + 3 * step] = d;
            }
            for (; word < words; word += step) to[word] = from[word];
        } else {
            const unsigned char* from = (const unsigned char*)piece.from;
            unsigned char* to = (unsigned char*)piece.to;
            for (unsigned long long byte = threadIdx.x; byte < piece.bytes; byte += blockDim.x) to[byte] = from[byte];
        }
    }
}
