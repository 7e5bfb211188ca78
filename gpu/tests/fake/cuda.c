/* A driver of CUDA for tests on machines without a GPU: two GPUs whose memory is the host's. Copies are done when their stream is
 * waited for and not before, so that who forgets to wait finds old bytes. Any call can be told to fail, once, and each is counted. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <unistd.h>

#ifndef GPUS
#define GPUS 2
#endif
#ifndef MEMORY_MIB
#define MEMORY_MIB 256
#endif
#define MEMORY ((size_t)MEMORY_MIB << 20)
#define MAX_COPIES 4096
#define PAGE 4096

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };

/* A copy, a launch of a kernel, or something that another library has the stream do. */
typedef struct { void *to; const void *from; size_t bytes; void *launched; void (*run)(void *); void *with; } Copy;
/* What was asked of it in a ring, how much of it ever, and how much of that is done. Once another library had it do something that takes time,
 * a thread of its own does what comes, and does it at once. */
typedef struct {
    int context, threaded, ending;
    uint64_t asked, done;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Copy copy[MAX_COPIES];
} Stream;

const void *kernel_named(const char *name);
void *kernel_launched(const void *kernel, unsigned blocks, unsigned threads, void **arguments);
void kernel_run(void *launched);
int kernel_may_run(void *launched, int (*may)(int context, uint64_t at, size_t bytes), int context);
typedef struct { int recorded; Stream *stream; uint64_t at; } Event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int initialized, version = 13000, count = GPUS;
static _Atomic int live, retained[GPUS];
static size_t used;
static char failing[64];
static int failing_at, failing_code;
/* Once the GPUs have died, all that has to do with their contexts fails. */
static int dead, mappable = 1, capability = 90, newest;
static __thread int current[16], depth;

/* How often each call was made. */
#define MOST_CALLS 64
static struct { const char *name; int times; } calls[MOST_CALLS];
/* Under the lock. */
static int *times_of(const char *name) {
    int at = 0;
    while (at < MOST_CALLS && calls[at].name && strcmp(calls[at].name, name)) at++;
    if (at == MOST_CALLS) abort();
    if (!calls[at].name) calls[at].name = strdup(name);
    return &calls[at].times;
}
/* Has the `nth` call of `name` from now on return `code`. */
void fake_fail(const char *name, int nth, int code) {
    pthread_mutex_lock(&lock);
    *times_of(name) = 0;
    strncpy(failing, name, sizeof failing - 1);
    failing_at = nth;
    failing_code = code;
    pthread_mutex_unlock(&lock);
}
/* Has the GPUs die, with this error. */
void fake_die(int code) { dead = code; }
/* Says whether GPUs have virtual memory. */
void fake_mappable(int is) { mappable = is; }
/* Sets what kind all GPUs are of. */
void fake_capability(int is) { capability = is; }
/* Says of the kernels that were loaded what kind of GPU the newest are for. */
int fake_newest(void) { return newest; }
void fake_version(int told) { version = told; }
void fake_count(int gpus) { count = gpus; }
/* Says how much that was given has not been given back: memory, streams, events, contexts. */
int fake_live(void) { return live; }
/* Says how many contexts this thread has entered and not left. */
int fake_depth(void) { return depth; }

/* Has the `nth` call of `name` from now on not return before `fake_release`, as a GPU that hangs. */
static char hanging[64];
static int hanging_at, hung, releases;
static pthread_cond_t released = PTHREAD_COND_INITIALIZER;
void fake_hang(const char *name, int nth) {
    pthread_mutex_lock(&lock);
    strncpy(hanging, name, sizeof hanging - 1);
    hanging_at = nth;
    pthread_mutex_unlock(&lock);
}
void fake_release(int none) {
    (void)none;
    pthread_mutex_lock(&lock);
    hanging_at = 0;
    releases++;
    pthread_cond_broadcast(&released);
    pthread_mutex_unlock(&lock);
}
/* Says how many calls hang. */
int fake_hung(void) {
    pthread_mutex_lock(&lock);
    int now = hung;
    pthread_mutex_unlock(&lock);
    return now;
}

/* What goes wrong in a process that is started so: KVHIVE_FAKE_CUDA is `NAME:N:hang`, or a code in the place of `hang`. */
static void read_environment(void) {
    static int is_read;
    char name[48], how[16];
    int nth;
    const char *wrong = getenv("KVHIVE_FAKE_CUDA");
    if (is_read++ || !wrong || sscanf(wrong, "%47[^:]:%d:%15s", name, &nth, how) != 3) return;
    strcpy(strcmp(how, "hang") ? failing : hanging, name);
    *(strcmp(how, "hang") ? &failing_at : &hanging_at) = nth;
    failing_code = atoi(how);
}
/* Says how often a call of this name was made since it was told to fail, if it was: those among it that failed or hang. */
int fake_calls(const char *name) {
    pthread_mutex_lock(&lock);
    int times = *times_of(name);
    pthread_mutex_unlock(&lock);
    return times;
}
static int fails(const char *name) {
    int code = 0;
    pthread_mutex_lock(&lock);
    read_environment();
    ++*times_of(name);
    if (hanging_at > 0 && !strcmp(name, hanging) && --hanging_at == 0) {
        hung++;
        for (int before = releases; before == releases;) pthread_cond_wait(&released, &lock);
        hung--;
    }
    if (failing_at > 0 && !strcmp(name, failing) && --failing_at == 0) code = failing_code;
    pthread_mutex_unlock(&lock);
    if (!code && !initialized && strcmp(name, "cuInit") && strcmp(name, "cuDriverGetVersion")) code = NOT_INITIALIZED;
    return code;
}
#define BEGIN do { int code = fails(__func__); if (code) return code; } while (0)
#define INSIDE do { BEGIN; if (dead) return dead; if (!depth) return INVALID_CONTEXT; } while (0)

int cuInit(unsigned flags) { BEGIN; initialized = 1; return flags ? INVALID_VALUE : OK; }
int cuDriverGetVersion(int *out) { BEGIN; *out = version; return OK; }
int cuGetErrorName(int code, const char **out) {
    *out = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *out ? OK : INVALID_VALUE;
}
int cuGetErrorString(int code, const char **out) {
    *out = code == OUT_OF_MEMORY ? "out of memory" : code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : NULL;
    return *out ? OK : INVALID_VALUE;
}
int cuDeviceGetCount(int *out) { BEGIN; *out = count; return OK; }
int cuDeviceGet(int *out, int ordinal) { BEGIN; if (ordinal < 0 || ordinal >= count) return INVALID_DEVICE; *out = ordinal; return OK; }
int cuDeviceGetName(char *out, int bytes, int device) { BEGIN; strncpy(out, device ? "Fake 1" : "Fake 0", bytes); return OK; }
int cuDeviceTotalMem_v2(size_t *out, int device) { BEGIN; (void)device; *out = MEMORY; return OK; }
int cuDeviceGetAttribute(int *out, int attribute, int device) { BEGIN; (void)device; *out = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : attribute == 16 ? 3 : attribute == 91 ? mappable : 0; return OK; }
static int peers = 1;
/* Says whether GPUs reach each other's memory. */
void fake_peers(int are) { peers = are; }
int cuDeviceCanAccessPeer(int *out, int from, int to) { BEGIN; if (from >= count || to >= count || from == to) return INVALID_DEVICE; *out = peers; return OK; }
int cuDeviceGetPCIBusId(char *out, int bytes, int device) { BEGIN; strncpy(out, device ? "0000:02:00.0" : "0000:01:00.0", bytes); return OK; }
int cuDevicePrimaryCtxRetain(void **out, int device) { BEGIN; retained[device]++; live++; *out = (void *)(uintptr_t)(device + 1); return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { BEGIN; if (retained[device]-- <= 0) abort(); live--; return OK; }
int cuCtxPushCurrent_v2(void *context) { BEGIN; if (!context || depth >= 16) return INVALID_CONTEXT; current[depth++] = (int)(uintptr_t)context; return OK; }
int cuCtxPopCurrent_v2(void **out) { BEGIN; if (!depth) return INVALID_CONTEXT; *out = (void *)(uintptr_t)current[--depth]; return OK; }

static int give(void **out, size_t bytes) {
    size_t *memory;
    pthread_mutex_lock(&lock);
    int full = used + bytes > MEMORY;
    if (!full) { used += bytes; live++; }
    pthread_mutex_unlock(&lock);
    if (full) return OUT_OF_MEMORY;
    /* Large pieces begin at a page, as the driver's do. */
    if (posix_memalign((void **)&memory, PAGE, PAGE + bytes)) return OUT_OF_MEMORY;
    *memory = bytes;
    /* Memory that nobody wrote is of no use to anybody. */
    memset((char *)memory + PAGE, 0xA5, bytes);
    *out = (char *)memory + PAGE;
    return OK;
}
static int take_back(void *memory) {
    size_t *start = (size_t *)((char *)memory - PAGE);
    pthread_mutex_lock(&lock);
    used -= *start;
    live--;
    pthread_mutex_unlock(&lock);
    free(start);
    return OK;
}
/* The GPUs' memory that another process can map is files that have no names. */
static int budget(size_t bytes) {
    pthread_mutex_lock(&lock);
    int full = used + bytes > MEMORY;
    if (!full) { used += bytes; live++; }
    pthread_mutex_unlock(&lock);
    return full ? OUT_OF_MEMORY : OK;
}
static void unbudget(size_t bytes) {
    pthread_mutex_lock(&lock);
    used -= bytes;
    live--;
    pthread_mutex_unlock(&lock);
}
static int file_of(size_t bytes) {
    int file = memfd_create("gpu", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)bytes)) abort();
    return file;
}
static void *mapped(int file, size_t bytes) {
    void *all = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
    if (all == MAP_FAILED) abort();
    return all;
}
/* Memory of `cuMemAlloc`, and of other processes that was opened here (`times` often). */
typedef struct Range { struct Range *next; char *start; size_t bytes; int file, times; ino_t inode; } Range; /* `file`: -1 before it is lent. */
static Range *ranges;
static Range *range_of(const char *at) {
    Range *range = ranges;
    while (range && !(at >= range->start && at < range->start + range->bytes)) range = range->next;
    return range;
}
static Range *range_new(void *start, size_t bytes, int file, ino_t inode) {
    Range *range = calloc(1, sizeof *range);
    *range = (Range){ .next = ranges, .start = start, .bytes = bytes, .file = file, .times = 1, .inode = inode };
    return ranges = range;
}
/* Under the lock. */
static void range_end(Range *range) {
    Range **at = &ranges;
    while (*at != range) at = &(*at)->next;
    *at = range->next;
    munmap(range->start, range->bytes);
    if (range->file >= 0) close(range->file);
    free(range);
}
int cuMemGetInfo_v2(size_t *free, size_t *total) { INSIDE; *free = MEMORY - used; *total = MEMORY; return OK; }
int cuMemAlloc_v2(uint64_t *out, size_t bytes) {
    INSIDE;
    int full = budget(bytes);
    if (full) return full;
    void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) abort();
    memset(start, 0xA5, bytes);
    pthread_mutex_lock(&lock);
    range_new(start, bytes, -1, 0);
    pthread_mutex_unlock(&lock);
    *out = (uintptr_t)start;
    return OK;
}
int cuMemFree_v2(uint64_t memory) {
    INSIDE;
    pthread_mutex_lock(&lock);
    Range *range = range_of((char *)(uintptr_t)memory);
    if (!range || range->start != (char *)(uintptr_t)memory) abort();
    size_t bytes = range->bytes;
    range_end(range);
    pthread_mutex_unlock(&lock);
    unbudget(bytes);
    return OK;
}
int cuMemGetAddressRange_v2(uint64_t *start, size_t *bytes, uint64_t at) {
    INSIDE;
    pthread_mutex_lock(&lock);
    Range *range = range_of((char *)(uintptr_t)at);
    if (range) { *start = (uintptr_t)range->start; *bytes = range->bytes; }
    pthread_mutex_unlock(&lock);
    return range ? OK : INVALID_VALUE;
}

/* A handle says in which process a file is open, under which number, and which file that is. */
typedef union { char reserved[64]; struct { uint64_t magic, process, file, inode; } is; } Handle;
#define MAGIC 0x4b56484956450a0dull
/* Makes of memory that this process has alone a file, in its place. Whoever lends memory does not write it meanwhile. */
static void share(Range *range) {
    struct stat stat;
    range->file = file_of(range->bytes);
    void *copy = mapped(range->file, range->bytes);
    memcpy(copy, range->start, range->bytes);
    munmap(copy, range->bytes);
    void *there = mmap(range->start, range->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, range->file, 0);
    if (there == MAP_FAILED || fstat(range->file, &stat)) abort();
    range->inode = stat.st_ino;
}
int cuIpcGetMemHandle(Handle *out, uint64_t start) {
    INSIDE;
    pthread_mutex_lock(&lock);
    Range *range = range_of((char *)(uintptr_t)start);
    int known = range && range->start == (char *)(uintptr_t)start;
    if (known && range->file < 0) share(range);
    if (known) *out = (Handle){ .is = { MAGIC, (uint64_t)getpid(), (uint64_t)range->file, range->inode } };
    pthread_mutex_unlock(&lock);
    return known ? OK : INVALID_VALUE;
}
int cuIpcOpenMemHandle_v2(uint64_t *out, Handle handle, unsigned flags) {
    INSIDE;
    char path[64];
    struct stat stat;
    if (flags != 1 || handle.is.magic != MAGIC) return INVALID_VALUE;
    /* As the driver has it: a process does not open what is its own. */
    if (handle.is.process == (uint64_t)getpid()) return INVALID_CONTEXT;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)handle.is.process, (int)handle.is.file);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return INVALID_VALUE;
    if (fstat(file, &stat) || stat.st_ino != handle.is.inode) { close(file); return INVALID_VALUE; }
    pthread_mutex_lock(&lock);
    Range *range = ranges;
    while (range && range->inode != stat.st_ino) range = range->next;
    if (range) {
        range->times++;
        close(file);
    } else {
        range = range_new(mapped(file, (size_t)stat.st_size), (size_t)stat.st_size, file, stat.st_ino);
    }
    live++;
    *out = (uintptr_t)range->start;
    pthread_mutex_unlock(&lock);
    return OK;
}
int cuIpcCloseMemHandle(uint64_t start) {
    INSIDE;
    pthread_mutex_lock(&lock);
    Range *range = range_of((char *)(uintptr_t)start);
    if (!range) abort();
    live--;
    if (!--range->times) range_end(range);
    pthread_mutex_unlock(&lock);
    return OK;
}
/* Pinned for every GPU, and nothing else: a CPU reads write-combined memory (4) many times slower than what is cached. */
#define PORTABLE 1
int cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags) { INSIDE; if (!memory || !bytes || flags != PORTABLE) return INVALID_VALUE; live++; return OK; }
int cuMemHostUnregister(void *memory) { INSIDE; (void)memory; live--; return OK; }
int cuMemHostAlloc(void **out, size_t bytes, unsigned flags) { INSIDE; if (flags != PORTABLE) return INVALID_VALUE; return give(out, bytes); }
int cuMemFreeHost(void *memory) { INSIDE; return take_back(memory); }

/* Virtual memory: a handle is such a file; 0 is none, and one that was imported has a bit more. */
#define OTHERS (1ull << 32)
#define UNIT ((size_t)2 << 20)
int cuMemGetAllocationGranularity(size_t *out, const int *properties, int option) {
    INSIDE;
    if (!mappable) return 801;
    if (properties[0] != 1 || properties[1] != 1 || properties[2] != 1 || option) return INVALID_VALUE;
    *out = UNIT;
    return OK;
}
int cuMemCreate(uint64_t *out, size_t bytes, const int *properties, uint64_t flags) {
    INSIDE;
    if (flags || bytes % UNIT || properties[3] != current[depth - 1] - 1) return INVALID_VALUE;
    int full = budget(bytes);
    if (full) return full;
    int file = file_of(bytes);
    void *all = mapped(file, bytes);
    memset(all, 0xA5, bytes);
    munmap(all, bytes);
    *out = (uint64_t)file + 1;
    return OK;
}
int cuMemRelease(uint64_t handle) {
    INSIDE;
    int file = (int)handle - 1;
    off_t bytes = lseek(file, 0, SEEK_END);
    if (bytes < 0) abort();
    close(file);
    unbudget(handle & OTHERS ? 0 : (size_t)bytes);
    return OK;
}
int cuMemImportFromShareableHandle(uint64_t *out, void *number, int kind) {
    INSIDE;
    struct stat stat;
    int file = (int)(intptr_t)number;
    /* As the real one, it takes standard input for no address. */
    if (kind != 1 || !number || fstat(file, &stat)) return INVALID_VALUE;
    /* Only what has no name can be such memory. */
    if (!S_ISREG(stat.st_mode) || stat.st_nlink || stat.st_size % (off_t)UNIT) return INVALID_VALUE;
    live++;
    *out = ((uint64_t)fcntl(file, F_DUPFD_CLOEXEC, 0) + 1) | OTHERS;
    return OK;
}
int cuMemAddressReserve(uint64_t *out, size_t bytes, size_t unit, uint64_t where, uint64_t flags) {
    INSIDE;
    if (bytes % UNIT || unit || where || flags) return INVALID_VALUE;
    void *start = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return OUT_OF_MEMORY;
    live++;
    *out = (uintptr_t)start;
    return OK;
}
int cuMemAddressFree(uint64_t start, size_t bytes) { INSIDE; live--; return munmap((void *)(uintptr_t)start, bytes) ? INVALID_VALUE : OK; }
/* What is mapped, and which GPUs may use it. */
typedef struct Mapping { struct Mapping *next; uint64_t start; size_t bytes; unsigned by; } Mapping;
static Mapping *mappings;
/* Under the lock. */
static Mapping *mapping_of(uint64_t at) {
    Mapping *one = mappings;
    while (one && !(at >= one->start && at < one->start + one->bytes)) one = one->next;
    return one;
}
/* Says whether the GPU of a context may use memory: one piece of it, and one that it was given access to. */
static int may_use_by(int context, uint64_t at, size_t bytes) {
    pthread_mutex_lock(&lock);
    Mapping *one = mapping_of(at);
    int may = !one || (at + bytes <= one->start + one->bytes && one->by >> (context - 1) & 1);
    pthread_mutex_unlock(&lock);
    return may;
}
/* The same of the GPU whose context is current. */
static int may_use(uint64_t at, size_t bytes) { return may_use_by(current[depth - 1], at, bytes); }
int cuMemMap(uint64_t start, size_t bytes, size_t from, uint64_t handle, uint64_t flags) {
    INSIDE;
    struct stat stat;
    if (flags || from || fstat((int)handle - 1, &stat) || (off_t)bytes > stat.st_size) return INVALID_VALUE;
    void *mapped = mmap((void *)(uintptr_t)start, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, (int)handle - 1, 0);
    if (mapped == MAP_FAILED) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    Mapping *one = calloc(1, sizeof *one);
    *one = (Mapping){ .next = mappings, .start = start, .bytes = bytes };
    mappings = one;
    live++;
    pthread_mutex_unlock(&lock);
    return OK;
}
int cuMemUnmap(uint64_t start, size_t bytes) {
    INSIDE;
    pthread_mutex_lock(&lock);
    Mapping **at = &mappings;
    while (*at && (*at)->start != start) at = &(*at)->next;
    if (!*at || (*at)->bytes != bytes) abort();
    Mapping *one = *at;
    *at = one->next;
    free(one);
    live--;
    pthread_mutex_unlock(&lock);
    void *left = mmap((void *)(uintptr_t)start, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    return left == MAP_FAILED ? INVALID_VALUE : OK;
}
int cuMemSetAccess(uint64_t start, size_t bytes, const int *access, size_t count) {
    INSIDE;
    int own = current[depth - 1] - 1, whose = access[1];
    if (count != 1 || access[0] != 1 || access[2] != 3 || whose < 0 || whose >= GPUS || (whose != own && !peers)) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    Mapping *one = mapping_of(start);
    if (one) one->by |= 1u << whose;
    pthread_mutex_unlock(&lock);
    if (!one) return INVALID_VALUE;
    return mprotect((void *)(uintptr_t)start, bytes, PROT_READ | PROT_WRITE) ? INVALID_VALUE : OK;
}
int cuMemExportToShareableHandle(void *out, uint64_t handle, int kind, uint64_t flags) {
    INSIDE;
    if (kind != 1 || flags) return INVALID_VALUE;
    *(int *)out = fcntl((int)handle - 1, F_DUPFD_CLOEXEC, 0);
    return OK;
}

int cuStreamCreate(void **out, unsigned flags) {
    INSIDE;
    /* One that waits for no default stream: others of the process have theirs. */
    if (flags != 1) return INVALID_VALUE;
    Stream *stream = calloc(1, sizeof *stream);
    stream->context = current[depth - 1];
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->changed, NULL);
    live++;
    *out = stream;
    return OK;
}
static void stream_do(Stream *stream, Copy *one) {
    if (one->run) one->run(one->with);
    /* A kernel that touches what its GPU may not takes its context along. */
    else if (one->launched && !kernel_may_run(one->launched, may_use_by, stream->context)) dead = ILLEGAL_ADDRESS;
    else if (one->launched) kernel_run(one->launched);
    else memcpy(one->to, one->from, one->bytes);
}
static void *stream_thread(void *raw) {
    Stream *stream = raw;
    pthread_mutex_lock(&stream->lock);
    for (;;) {
        while (stream->done == stream->asked && !stream->ending) pthread_cond_wait(&stream->changed, &stream->lock);
        if (stream->done == stream->asked) break;
        Copy one = stream->copy[stream->done % MAX_COPIES];
        pthread_mutex_unlock(&stream->lock);
        stream_do(stream, &one);
        pthread_mutex_lock(&stream->lock);
        stream->done++;
        pthread_cond_broadcast(&stream->changed);
    }
    pthread_mutex_unlock(&stream->lock);
    free(stream);
    return NULL;
}
/* As the driver's, it returns at once, and what was asked is done. */
int cuStreamDestroy_v2(void *raw) {
    INSIDE;
    Stream *stream = raw;
    live--;
    if (!stream->threaded) { free(stream); return OK; }
    pthread_mutex_lock(&stream->lock);
    stream->ending = 1;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return OK;
}
/* Does what was asked up to some point, or waits until it is done. */
static void stream_until(Stream *stream, uint64_t at) {
    pthread_mutex_lock(&stream->lock);
    while (stream->done < at) {
        if (stream->threaded) pthread_cond_wait(&stream->changed, &stream->lock);
        else stream_do(stream, &stream->copy[stream->done++ % MAX_COPIES]);
    }
    pthread_mutex_unlock(&stream->lock);
}
int cuStreamSynchronize(void *raw) {
    Stream *stream = raw;
    int code = fails(__func__);
    /* Also where it fails, nothing is under way any more. */
    stream_until(stream, stream->asked);
    return code ? code : dead ? dead : depth ? OK : INVALID_CONTEXT;
}
static int stream_ask(Stream *stream, Copy copy) {
    pthread_mutex_lock(&stream->lock);
    int full = stream->asked - stream->done == MAX_COPIES;
    if (!full) stream->copy[stream->asked++ % MAX_COPIES] = copy;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return full ? INVALID_VALUE : OK;
}
/* Has a stream do something that may take long, after what was asked of it before. */
int fake_stream_run(void *raw, void (*run)(void *), void *with) {
    Stream *stream = raw;
    int code = stream_ask(stream, (Copy){ .run = run, .with = with });
    if (code || stream->threaded) return code;
    pthread_t thread;
    stream->threaded = 1;
    if (pthread_create(&thread, NULL, stream_thread, stream)) abort();
    pthread_detach(thread);
    return OK;
}
static int later(Stream *stream, void *to, const void *from, size_t bytes) {
    if (stream->context != current[depth - 1]) return INVALID_VALUE;
    return stream_ask(stream, (Copy){ .to = to, .from = from, .bytes = bytes });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) { INSIDE; if (!may_use(to, bytes)) return INVALID_VALUE; return later(stream, (void *)(uintptr_t)to, from, bytes); }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) { INSIDE; if (!may_use(from, bytes)) return INVALID_VALUE; return later(stream, to, (void *)(uintptr_t)from, bytes); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) { INSIDE; if (!may_use(to, bytes) || !may_use(from, bytes)) return INVALID_VALUE; return later(stream, (void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes); }

int cuModuleLoadData(void **out, const void *image) {
    INSIDE;
    const char *target = strstr(image, ".target sm_");
    const int kind = target ? atoi(target + strlen(".target sm_")) : 0;
    if (kind != 80 && kind != 89) return INVALID_VALUE;
    if (kind > capability) return NO_BINARY_FOR_GPU;
    live++;
    if (kind > newest) newest = kind;
    *out = strdup(image);
    return OK;
}
int cuModuleUnload(void *module) { INSIDE; live--; free(module); return OK; }
int cuModuleGetFunction(void **out, void *module, const char *name) {
    INSIDE;
    /* Of what was loaded. */
    char entry[128];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    *out = strstr(module, entry) ? (void *)kernel_named(name) : NULL;
    return *out ? OK : NOT_FOUND;
}
int cuLaunchKernel(void *kernel, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz, unsigned shared, void *raw,
                   void **arguments, void **extra) {
    INSIDE;
    Stream *stream = raw;
    if (!x || y * z * ty * tz != 1 || shared || extra || stream->context != current[depth - 1]) return INVALID_VALUE;
    /* Arguments are read at once, what they point to when the kernel runs. */
    return stream_ask(stream, (Copy){ .launched = kernel_launched(kernel, x, tx, arguments) });
}

int cuEventCreate(void **out, unsigned flags) { INSIDE; if (flags & ~2u) return INVALID_VALUE; *out = calloc(1, sizeof(Event)); live++; return OK; }
int cuEventDestroy_v2(void *event) { INSIDE; live--; free(event); return OK; }
int cuEventRecord(void *raw, void *on) {
    INSIDE;
    Stream *stream = on;
    pthread_mutex_lock(&stream->lock);
    *(Event *)raw = (Event){ .recorded = 1, .stream = stream, .at = stream->asked };
    pthread_mutex_unlock(&stream->lock);
    return OK;
}
/* A stream without a thread has done what it was asked when it is asked about it. */
int cuEventQuery(void *raw) {
    INSIDE;
    Event *event = raw;
    if (!event->recorded) return OK;
    if (!event->stream->threaded) stream_until(event->stream, event->at);
    pthread_mutex_lock(&event->stream->lock);
    int over = event->stream->done >= event->at;
    pthread_mutex_unlock(&event->stream->lock);
    return over ? OK : NOT_READY;
}
int cuEventElapsedTime(float *ms, void *begun, void *ended) {
    INSIDE;
    if (!((Event *)begun)->recorded || !((Event *)ended)->recorded) return INVALID_VALUE;
    *ms = 2.0f;
    return OK;
}
