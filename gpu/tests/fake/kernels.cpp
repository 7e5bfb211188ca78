// The kernels, run by the CPU.

#include "threads.h"

#include <functional>
#include <map>
#include <string>
#include <tuple>

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

namespace {

using Run = std::function<void()>;

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
    };
    return all;
}

struct Launch {
    unsigned blocks, threads;
    Run run;
};

}  // namespace

// Returns a kernel of this name, and null where there is none.
extern "C" const void *kernel_named(const char *name) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

// Returns a launch, to be run once.
extern "C" void *kernel_launched(const void *kernel, unsigned blocks, unsigned threads, void **arguments) {
    return new Launch{blocks, threads, (*(const std::function<Run(void **)> *)kernel)(arguments)};
}

extern "C" void kernel_run(void *launched) {
    Launch *launch = (Launch *)launched;
    threads::launch(launch->blocks, launch->threads, [](void *run) { (*(Run *)run)(); }, &launch->run);
    delete launch;
}
