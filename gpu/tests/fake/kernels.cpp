// The kernels, run by the CPU.

#include "threads.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace {

// What a code of e4m3 stands for, by its definition: bias 7, three bits of a mantissa, no infinities.
double value_of_e4m3(unsigned code) {
    const unsigned exponent = code >> 3 & 15, mantissa = code & 7;
    const double magnitude = exponent ? std::ldexp(8 + mantissa, (int)exponent - 10) : std::ldexp(mantissa, -9);
    return code & 0x80 ? -magnitude : magnitude;
}

// `cvt.rn.satfinite.e4m3x2.f32`, of one number: the nearest, of two the one with an even mantissa, 448 beyond that, and NaN for NaN.
unsigned e4m3_of(float value) {
    if (value != value) return 0x7F;
    static const std::vector<double> all = [] {
        std::vector<double> values;
        for (unsigned code = 0; code < 0x7F; code++) values.push_back(value_of_e4m3(code));
        return values;
    }();
    const double magnitude = std::fabs(value);
    const unsigned above = (unsigned)(std::lower_bound(all.begin(), all.end(), magnitude) - all.begin());
    unsigned nearest = std::min(above, 0x7Eu);
    if (above > 0 && above < all.size()) {
        const double to_lower = magnitude - all[above - 1], to_upper = all[above] - magnitude;
        if (to_lower < to_upper || (to_lower == to_upper && above % 2 == 1)) nearest = above - 1;
    }
    return nearest | (std::signbit(value) ? 0x80 : 0);
}

// `cvt.rn.f16x2.e4m3x2`, of one number, which a binary16 has exactly.
unsigned f16_of_e4m3(unsigned code) {
    const unsigned sign = (code & 0x80) << 8;
    if ((code & 0x7F) == 0x7F) return 0x7FFF;
    if ((code & 0x7F) == 0) return sign;
    int exponent;
    const double mantissa = std::frexp(std::fabs(value_of_e4m3(code)), &exponent);
    return sign | (unsigned)(exponent + 14) << 10 | ((unsigned)(mantissa * 2048) & 0x3FF);
}

}  // namespace

namespace copy {
#include "../../kernels/copy.cu"
}
namespace digest {
#include "../../kernels/digest.cu"
}
namespace raw {
#include "../../kernels/raw.cu"
}
namespace int8 {
#include "../../kernels/int8.cu"
}
namespace int4 {
#include "../../kernels/int4.cu"
}
namespace fp8 {
#include "../../kernels/fp8.cu"
}
// As it is compiled for GPUs with instructions for e4m3.
namespace fp8_sm89 {
#define E4M3_BY_INSTRUCTION
#include "../../kernels/fp8.cu"
}

namespace {

using Run = std::function<void()>;
using May = int (*)(int context, uint64_t at, size_t bytes);

// Reads the arguments of a launch at once; what they point to is read when it is run.
template <class... Given, size_t... At> Run take(void (*kernel)(Given...), void **arguments, std::index_sequence<At...>) {
    return [kernel, given = std::make_tuple(*(std::remove_const_t<Given> *)arguments[At]...)] { std::apply(kernel, given); };
}

template <class... Given> std::function<Run(void **)> takes(void (*kernel)(Given...)) {
    return [kernel](void **arguments) { return take(kernel, arguments, std::index_sequence_for<Given...>()); };
}

const std::map<std::string, std::function<Run(void **)>> &kernels() {
#define KERNEL(PLACE, NAME) {#NAME, takes(PLACE::NAME)}
#define EACH(PLACE, NAME) KERNEL(PLACE, NAME##_f16), KERNEL(PLACE, NAME##_bf16), KERNEL(PLACE, NAME##_f32)
#define SM89(NAME) KERNEL(fp8_sm89, NAME##_f16_sm89), KERNEL(fp8_sm89, NAME##_bf16_sm89), KERNEL(fp8_sm89, NAME##_f32_sm89)
    static const std::map<std::string, std::function<Run(void **)>> all = {
        KERNEL(copy, kvhive_copy),
        KERNEL(digest, kvhive_digest),
        KERNEL(raw, kvhive_gather_raw),
        KERNEL(raw, kvhive_scatter_raw),
        EACH(int8, kvhive_gather_int8),
        EACH(int8, kvhive_scatter_int8),
        EACH(int4, kvhive_gather_int4),
        EACH(int4, kvhive_scatter_int4),
        EACH(fp8, kvhive_gather_fp8),
        EACH(fp8, kvhive_scatter_fp8),
        SM89(kvhive_gather_fp8),
        SM89(kvhive_scatter_fp8),
    };
    return all;
}

struct Launch {
    unsigned blocks, threads;
    Run run;
    // Of a copy: its pieces and how many, whose list is there when it is run.
    const copy::Piece *pieces;
    unsigned count;
};

}  // namespace

// Returns a kernel of this name, and null where there is none.
extern "C" const void *kernel_named(const char *name) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

// Returns a launch, to be run once.
extern "C" void *kernel_launched(const void *kernel, unsigned blocks, unsigned threads, void **arguments) {
    Launch *launch = new Launch{blocks, threads, (*(const std::function<Run(void **)> *)kernel)(arguments), nullptr, 0};
    if (kernel == kernel_named("kvhive_copy")) launch->pieces = *(const copy::Piece **)arguments[0], launch->count = *(unsigned *)arguments[1];
    return launch;
}

// Says whether a launch is none of pieces that the GPU of this context may not use; one that is, is run no more.
extern "C" int kernel_may_run(void *launched, May may, int context) {
    Launch *launch = (Launch *)launched;
    for (unsigned at = 0; at < launch->count; at++) {
        const copy::Piece &piece = launch->pieces[at];
        if (may(context, piece.from, piece.bytes) && may(context, piece.to, piece.bytes)) continue;
        delete launch;
        return 0;
    }
    return 1;
}

extern "C" void kernel_run(void *launched) {
    Launch *launch = (Launch *)launched;
    threads::launch(launch->blocks, launch->threads, [](void *run) { (*(Run *)run)(); }, &launch->run);
    delete launch;
}
