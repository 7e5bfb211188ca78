/* An NCCL for tests on machines without a GPU. Ranks find each other by sockets of this machine, in one process or in several. All of it is done
 * later, as by the real one with communicators that do not block: joining, telling the GPU, and the bytes themselves, in the order of the stream
 * that the tests' own CUDA driver has; without that driver, by a thread. Operations that do not end hold their stream up until they are aborted.
 *
 * KVHIVE_FAKE_NCCL says what goes wrong: `NAME:N:HOW` separated by commas, the Nth call of NAME, or the Nth `transfer` in its middle, or the Nth
 * `asked` of a communicator that something was enqueued on, or `idle` of one that stands and on which nothing was, both of which
 * ncclCommGetAsyncError is; the 0th is each. HOW is `fail`, `hang`, `die` or, of transfers, `slow`: a tenth of a second; once something has, there is a file of that
 * NAME in the folder KVHIVE_FAKE_NCCL_REACHED, and there are `config`: how a communicator was to be made, and `sends`: how many bytes each send
 * was of. KVHIVE_FAKE_NCCL_VERSION says which version it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RANKS 16
#define NAME 40
#define OPS 4096
#define SOON_MS 2
#ifndef VERSION
#define VERSION 22809
#endif

enum { OK = 0, CUDA = 1, SYSTEM = 2, INTERNAL = 3, ARGUMENT = 4, USAGE = 5, REMOTE = 6, IN_PROGRESS = 7 };
typedef struct { char internal[128]; } Id;
typedef struct { size_t size; unsigned magic, version; int blocking, cga, min_ctas, max_ctas; } Config;

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* Threads, and operations of streams, that will yet look at it. */
    int users, joining, launching, running;
    int state, aborted, ending, enqueued, stands;
    int rank, ranks, links[RANKS], listener;
    char name[NAME];
} Comm;

enum { SEND, RECEIVE, ROOT, LEAF };
typedef struct { int kind, peer; char *at; size_t bytes; Comm *comm; void *stream; } Op;
typedef struct { Comm *comm; void *stream; int ops; Op op[]; } Batch;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int live, finished;
static char told[256];
static struct { char name[48]; int calls; } counts[32];
/* Listeners of ids that were made here and are not joined yet. */
static struct { char name[NAME]; int file; } waiting[64];
static __thread int depth, grouped;
static __thread Op group[OPS];

enum { FINE, FAIL, HANG, DIE, SLOW };
/* Counts a call, and says what is to go wrong in it. */
static int fate(const char *name) {
    int nth = 0, how = FINE;
    const char *wanted = getenv("KVHIVE_FAKE_NCCL");
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 32 && !nth; i++) {
        if (!counts[i].name[0]) strncpy(counts[i].name, name, sizeof counts[i].name - 1);
        if (!strcmp(counts[i].name, name)) nth = ++counts[i].calls;
    }
    if (told[0]) wanted = told;
    while (wanted && *wanted) {
        char which[48], what[16];
        int at;
        if (sscanf(wanted, "%47[^:]:%d:%15[^,]", which, &at, what) == 3 && !strcmp(which, name) && (at == nth || !at))
            how = !strcmp(what, "fail") ? FAIL : !strcmp(what, "hang") ? HANG : !strcmp(what, "die") ? DIE
                : !strcmp(what, "slow") ? SLOW : (abort(), FINE);
        wanted = strchr(wanted, ',');
        if (wanted) wanted++;
    }
    pthread_mutex_unlock(&lock);
    /* Whoever planned it sees that it has come to that. */
    const char *reached = getenv("KVHIVE_FAKE_NCCL_REACHED");
    if (how && reached) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", reached, name);
        close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    }
    if (how == DIE) _exit(66);
    return how;
}
static int call(const char *name) {
    int how = fate(name);
    while (how == HANG) pause();
    return how == FAIL ? SYSTEM : OK;
}
#define BEGIN do { int code = call(__func__); if (code) return code; } while (0)

/* Says what goes wrong from now on, counted from now on. */
void fake_wrong(const char *what) {
    pthread_mutex_lock(&lock);
    memset(counts, 0, sizeof counts);
    snprintf(told, sizeof told, "%s", what);
    pthread_mutex_unlock(&lock);
}
/* Says how many communicators there are that were not let go of. */
int fake_comms(void) { return live; }
/* Says how many operations have ended. */
int fake_finished(void) { return finished; }

static void *of_cuda(const char *name) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    void *found = cuda ? dlsym(cuda, name) : NULL;
    if (cuda) dlclose(cuda);
    return found;
}
static void begin(void *(*run)(void *), void *with) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, with)) abort();
    pthread_detach(thread);
}

static int listen_as(char name[NAME]) {
    uint64_t random;
    if (getrandom(&random, sizeof random, 0) != sizeof random) return -1;
    snprintf(name, NAME, "kvhive-nccl-%016llx", (unsigned long long)random);
    int file = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    strcpy(at.sun_path + 1, name);
    if (bind(file, (void *)&at, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)) || listen(file, RANKS)) { close(file); return -1; }
    return file;
}
static int connect_to(const char *name) {
    int file = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    strcpy(at.sun_path + 1, name);
    if (connect(file, (void *)&at, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))) { close(file); return -1; }
    return file;
}
/* Waits until a socket can be read or written; not, once its communicator is of no use. */
static int await(Comm *comm, int file, int events) {
    struct pollfd one = { .fd = file, .events = (short)events };
    while (!comm->aborted)
        if (poll(&one, 1, SOON_MS) > 0) return 1;
    return 0;
}
static int put(Comm *comm, int file, const void *from, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        if (!await(comm, file, POLLOUT)) return 0;
        ssize_t sent = send(file, (const char *)from + at, bytes - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) return 0;
        at += sent > 0 ? (size_t)sent : 0;
    }
    return 1;
}
static int get(Comm *comm, int file, void *to, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        if (!await(comm, file, POLLIN)) return 0;
        ssize_t got = recv(file, (char *)to + at, bytes - at, MSG_DONTWAIT);
        if (!got || (got < 0 && errno != EAGAIN && errno != EINTR)) return 0;
        at += got > 0 ? (size_t)got : 0;
    }
    return 1;
}
static int accept_one(Comm *comm, int listener) {
    return await(comm, listener, POLLIN) ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : -1;
}

/* Lets one user less look at it. */
static void leave(Comm *comm, int *kind) {
    pthread_mutex_lock(&comm->lock);
    --*kind;
    comm->users--;
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->lock);
}
static void enter(Comm *comm, int *kind) {
    pthread_mutex_lock(&comm->lock);
    ++*kind;
    comm->users++;
    pthread_mutex_unlock(&comm->lock);
}
static void wrong(Comm *comm, int code) {
    pthread_mutex_lock(&comm->lock);
    if (!comm->state && !comm->aborted) comm->state = code;
    pthread_mutex_unlock(&comm->lock);
}

typedef struct { int rank; char name[NAME]; } Hello;
/* All find rank 0, tell it where they are, and hear where the others are. */
static int meet(Comm *comm) {
    Hello all[RANKS] = { 0 }, me = { .rank = comm->rank };
    if (comm->rank == 0) {
        pthread_mutex_lock(&lock);
        for (int i = 0; i < 64; i++)
            if (waiting[i].file && !strcmp(waiting[i].name, comm->name)) { comm->listener = waiting[i].file; waiting[i].file = 0; break; }
        pthread_mutex_unlock(&lock);
        if (comm->listener < 0) return INTERNAL;
        for (int i = 1; i < comm->ranks; i++) {
            int file = accept_one(comm, comm->listener);
            if (file < 0) return SYSTEM;
            if (!get(comm, file, &me, sizeof me) || me.rank < 1 || me.rank >= comm->ranks || comm->links[me.rank] >= 0) { close(file); return REMOTE; }
            comm->links[me.rank] = file;
            all[me.rank] = me;
        }
        for (int i = 1; i < comm->ranks; i++)
            if (!put(comm, comm->links[i], all, sizeof all)) return REMOTE;
        return OK;
    }
    if ((comm->listener = listen_as(me.name)) < 0) return SYSTEM;
    if ((comm->links[0] = connect_to(comm->name)) < 0) return REMOTE;
    if (!put(comm, comm->links[0], &me, sizeof me) || !get(comm, comm->links[0], all, sizeof all)) return REMOTE;
    for (int i = 1; i < comm->rank; i++) {
        if ((comm->links[i] = connect_to(all[i].name)) < 0) return REMOTE;
        if (!put(comm, comm->links[i], &comm->rank, sizeof comm->rank)) return REMOTE;
    }
    for (int i = comm->rank + 1; i < comm->ranks; i++) {
        int peer = 0, file = accept_one(comm, comm->listener);
        if (file < 0) return REMOTE;
        if (!get(comm, file, &peer, sizeof peer) || peer <= comm->rank || peer >= comm->ranks) { close(file); return REMOTE; }
        comm->links[peer] = file;
    }
    return OK;
}
static void *join(void *raw) {
    Comm *comm = raw;
    int code = meet(comm);
    if (comm->listener >= 0) close(comm->listener);
    comm->listener = -1;
    if (code) wrong(comm, code);
    leave(comm, &comm->joining);
    return NULL;
}

int ncclGetVersion(int *out) {
    const char *version = getenv("KVHIVE_FAKE_NCCL_VERSION");
    BEGIN;
    *out = version ? atoi(version) : VERSION;
    return OK;
}
const char *ncclGetErrorString(int code) {
    return code == SYSTEM ? "unhandled system error" : code == REMOTE ? "remote process exited or there was a network error" : "no error";
}
const char *ncclGetLastError(void *comm) { (void)comm; return "this NCCL is made for tests"; }
int ncclGetUniqueId(Id *out) {
    BEGIN;
    memset(out, 0, sizeof *out);
    int file = listen_as(out->internal);
    if (file < 0) return SYSTEM;
    pthread_mutex_lock(&lock);
    int at = 0;
    while (at < 64 && waiting[at].file) at++;
    if (at < 64) { waiting[at].file = file; strcpy(waiting[at].name, out->internal); }
    pthread_mutex_unlock(&lock);
    if (at == 64) { close(file); return SYSTEM; }
    return OK;
}
int ncclCommInitRankConfig(Comm **out, int ranks, Id id, int rank, Config *config) {
    *out = NULL;
    BEGIN;
    int (*entered)(void) = (int (*)(void))of_cuda("fake_depth");
    if (entered && !entered()) return CUDA;
    if (ranks < 1 || ranks > RANKS || rank < 0 || rank >= ranks || !memchr(id.internal, 0, NAME)) return ARGUMENT;
    if (config->size < sizeof *config || config->magic != 0xcafebeef || config->blocking) return ARGUMENT;
    if (getenv("KVHIVE_FAKE_NCCL_REACHED")) {
        char path[4096];
        snprintf(path, sizeof path, "%s/config", getenv("KVHIVE_FAKE_NCCL_REACHED"));
        FILE *file = fopen(path, "we");
        const char *buffer = getenv("NCCL_BUFFSIZE");
        if (file) fprintf(file, "%d to %d thread blocks, buffers of %s", config->min_ctas, config->max_ctas, buffer ? buffer : "any size");
        if (file) fclose(file);
    }
    Comm *comm = calloc(1, sizeof *comm);
    pthread_mutex_init(&comm->lock, NULL);
    pthread_cond_init(&comm->changed, NULL);
    comm->rank = rank;
    comm->ranks = ranks;
    comm->listener = -1;
    memset(comm->links, -1, sizeof comm->links);
    strcpy(comm->name, id.internal);
    live++;
    enter(comm, &comm->joining);
    begin(join, comm);
    *out = comm;
    return IN_PROGRESS;
}
int ncclCommGetAsyncError(Comm *comm, int *out) {
    BEGIN;
    int code = comm->ending ? OK : comm->enqueued ? call("asked") : comm->stands ? call("idle") : OK;
    if (code) return code;
    pthread_mutex_lock(&comm->lock);
    *out = comm->state ? comm->state : comm->joining || comm->launching || (comm->running && comm->ending) ? IN_PROGRESS : OK;
    comm->stands |= !*out;
    pthread_mutex_unlock(&comm->lock);
    return OK;
}
static int let_go(Comm *comm, int aborted) {
    pthread_mutex_lock(&comm->lock);
    comm->aborted |= aborted;
    while (comm->users) pthread_cond_wait(&comm->changed, &comm->lock);
    pthread_mutex_unlock(&comm->lock);
    for (int i = 0; i < RANKS; i++)
        if (comm->links[i] >= 0) close(comm->links[i]);
    free(comm);
    live--;
    return OK;
}
int ncclCommAbort(Comm *comm) { BEGIN; return let_go(comm, 1); }
int ncclCommDestroy(Comm *comm) { BEGIN; return let_go(comm, 0); }
int ncclCommFinalize(Comm *comm) {
    BEGIN;
    if (comm->state) return comm->state;
    comm->ending = 1;
    return IN_PROGRESS;
}

/* Both ends of a transfer tell each other how many bytes it is: real ones would hang, or worse. */
static int carry(Comm *comm, int is_sent, int peer, char *at, size_t bytes) {
    int how = fate("transfer"), file = comm->links[peer];
    if (how == SLOW) usleep(100 * 1000);
    size_t half = how && how != SLOW ? bytes / 2 : bytes;
    uint64_t count = bytes;
    if (is_sent ? !put(comm, file, &count, sizeof count) : !get(comm, file, &count, sizeof count)) return REMOTE;
    if (count != bytes) return INTERNAL;
    if (is_sent ? !put(comm, file, at, half) : !get(comm, file, at, half)) return REMOTE;
    if (how == HANG) while (!comm->aborted) usleep(SOON_MS * 1000);
    return how == FAIL ? SYSTEM : OK;
}
static int run_one(Op *op) {
    int code = OK;
    switch (op->kind) {
    case SEND: return carry(op->comm, 1, op->peer, op->at, op->bytes);
    case RECEIVE: case LEAF: return carry(op->comm, 0, op->peer, op->at, op->bytes);
    default:
        for (int i = 0; i < op->comm->ranks && !code; i++)
            if (i != op->comm->rank) code = carry(op->comm, 1, i, op->at, op->bytes);
        return code;
    }
}
static void run_some(Batch *batch, int is_sent) {
    for (int i = 0; i < batch->ops; i++) {
        Op *op = &batch->op[i];
        if ((op->kind == SEND || op->kind == ROOT) != is_sent) continue;
        int code = batch->comm->state ? batch->comm->state : run_one(op);
        /* As a kernel whose other end has gone, it waits to be aborted. */
        if (code) {
            wrong(batch->comm, code);
            while (!batch->comm->aborted) usleep(SOON_MS * 1000);
        }
        if (batch->comm->aborted) return;
        finished++;
    }
}
static void *run_sends(void *batch) { run_some(batch, 1); return NULL; }
static void run_batch(void *raw) {
    Batch *batch = raw;
    pthread_t sends;
    if (pthread_create(&sends, NULL, run_sends, batch)) abort();
    run_some(batch, 0);
    pthread_join(sends, NULL);
    leave(batch->comm, &batch->comm->running);
    free(batch);
}
static void *run_alone(void *batch) { run_batch(batch); return NULL; }
static void *launch(void *raw) {
    Batch *batch = raw;
    Comm *comm = batch->comm;
    int (*run)(void *, void (*)(void *), void *) = (int (*)(void *, void (*)(void *), void *))of_cuda("fake_stream_run");
    /* Who does not wait for this finds what it asked the stream afterwards done before. */
    usleep(200);
    if (run && batch->stream) run(batch->stream, run_batch, batch);
    else begin(run_alone, batch);
    leave(comm, &comm->launching);
    return NULL;
}

int ncclGroupStart(void) { BEGIN; depth++; return OK; }
int ncclGroupEnd(void) {
    int code = call(__func__);
    /* As the real one's, a group that fails is over. */
    if (code) { depth = grouped = 0; return code; }
    if (!depth) return USAGE;
    if (--depth || !grouped) return OK;
    int ops = grouped;
    grouped = 0;
    for (int i = 0; i < ops; i++) {
        Comm *comm = group[i].comm;
        if (!comm) continue;
        Batch *batch = calloc(1, sizeof *batch + (size_t)ops * sizeof(Op));
        batch->comm = comm;
        batch->stream = group[i].stream;
        for (int j = i; j < ops; j++)
            if (group[j].comm == comm) { batch->op[batch->ops++] = group[j]; group[j].comm = NULL; }
        comm->enqueued = 1;
        enter(comm, &comm->running);
        enter(comm, &comm->launching);
        begin(launch, batch);
    }
    return IN_PROGRESS;
}
static void note_send(size_t bytes) {
    char path[4096];
    if (!getenv("KVHIVE_FAKE_NCCL_REACHED")) return;
    snprintf(path, sizeof path, "%s/sends", getenv("KVHIVE_FAKE_NCCL_REACHED"));
    FILE *file = fopen(path, "ae");
    if (file) fprintf(file, "%zu\n", bytes);
    if (file) fclose(file);
}
static int ask(Op op) {
    Comm *comm = op.comm;
    if (comm->state) return comm->state;
    if (comm->joining || comm->launching) return USAGE;
    if (op.peer < 0 || op.peer >= comm->ranks || grouped == OPS) return ARGUMENT;
    if (op.kind == LEAF ? op.peer == comm->rank : 0) op.kind = ROOT;
    else if (op.peer == comm->rank) return USAGE;
    if (!depth) return USAGE;
    if (op.kind == SEND || op.kind == ROOT) note_send(op.bytes);
    group[grouped++] = op;
    return OK;
}
int ncclSend(const void *from, size_t bytes, int type, int peer, Comm *comm, void *stream) {
    BEGIN;
    return type == 1 ? ask((Op){ SEND, peer, (char *)from, bytes, comm, stream }) : ARGUMENT;
}
int ncclRecv(void *to, size_t bytes, int type, int peer, Comm *comm, void *stream) {
    BEGIN;
    return type == 1 ? ask((Op){ RECEIVE, peer, to, bytes, comm, stream }) : ARGUMENT;
}
int ncclBroadcast(const void *from, void *to, size_t bytes, int type, int root, Comm *comm, void *stream) {
    BEGIN;
    return type == 1 && from == to ? ask((Op){ LEAF, root, to, bytes, comm, stream }) : ARGUMENT;
}
