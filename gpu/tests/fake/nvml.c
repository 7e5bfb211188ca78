/* NVIDIA's management library for tests: two GPUs at the addresses of the driver of `cuda.c`, linked by NVLink. A test has something befall one. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, TIMEOUT = 10, GPU_IS_LOST = 15 };

typedef struct { void *device; unsigned long long kind, data; unsigned instances[2]; } Event;
typedef struct { int devices; unsigned long long kinds; } Set;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t befallen = PTHREAD_COND_INITIALIZER;
static int initialized, sets, linked = 1, level = 30, gone, busy;
static Event pending;
static char failing[64];
static int failing_at, failing_code;

/* Has something befall GPU `device`. */
void fake_befall(int device, int kind, int data) {
    pthread_mutex_lock(&lock);
    pending = (Event){ (void *)(uintptr_t)(device + 1), (unsigned)kind, (unsigned)data, { ~0u, ~0u } };
    pthread_cond_broadcast(&befallen);
    pthread_mutex_unlock(&lock);
}
/* Says whether something has befallen a GPU that nobody has heard of. */
int fake_pending(void) { pthread_mutex_lock(&lock); int is = pending.device != NULL; pthread_mutex_unlock(&lock); return is; }
/* Has the GPUs be no more. */
void fake_gone(int is) { pthread_mutex_lock(&lock); gone = is; pthread_cond_broadcast(&befallen); pthread_mutex_unlock(&lock); }
void fake_linked(int is) { linked = is; }
void fake_level(int is) { level = is; }
/* Sets how busy the second GPU is, in percent; the first does nothing. */
void fake_busy(int is) { busy = is; }
/* Has the `nth` call of `name` from now on return `code`. */
void fake_fail(const char *name, int nth, int code) {
    pthread_mutex_lock(&lock);
    strncpy(failing, name, sizeof failing - 1);
    failing_at = nth;
    failing_code = code;
    pthread_mutex_unlock(&lock);
}
static int fails(const char *name) {
    pthread_mutex_lock(&lock);
    int is_now = failing_at > 0 && !strcmp(name, failing) && --failing_at == 0;
    pthread_mutex_unlock(&lock);
    return is_now ? failing_code : !initialized && strcmp(name, "nvmlInit_v2") ? UNINITIALIZED : OK;
}
/* Says how much was made and not ended: sets of events, and uses of the library. */
int fake_live(void) { return initialized + sets; }

#define BEGIN do { int code = fails(__func__); if (code) return code; } while (0)

int nvmlInit_v2(void) { BEGIN; initialized++; return OK; }
int nvmlShutdown(void) { BEGIN; initialized--; return OK; }
const char *nvmlErrorString(int code) { return code == NOT_FOUND ? "Not Found" : code == 999 ? "Unknown Error" : NULL; }
int nvmlSystemGetDriverVersion(char *out, unsigned bytes) { BEGIN; strncpy(out, "580.00.01", bytes); return OK; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **out) {
    BEGIN;
    int device = !strcmp(address, "0000:01:00.0") ? 1 : !strcmp(address, "0000:02:00.0") ? 2 : 0;
    *out = (void *)(uintptr_t)device;
    return device ? OK : NOT_FOUND;
}
int nvmlDeviceGetP2PStatus(void *one, void *other, int index, int *out) {
    BEGIN;
    if (!one || !other || index != 2) return INVALID_ARGUMENT;
    *out = linked ? 0 : 5;
    return OK;
}
int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, int *out) { BEGIN; if (!one || !other) return INVALID_ARGUMENT; *out = level; return OK; }
int nvmlDeviceGetUtilizationRates(void *device, unsigned out[2]) {
    BEGIN;
    out[0] = (uintptr_t)device == 2 ? (unsigned)busy : 0;
    out[1] = 7;
    return device ? OK : INVALID_ARGUMENT;
}
int nvmlEventSetCreate(void **out) { BEGIN; sets++; *out = calloc(1, sizeof(Set)); return OK; }
int nvmlEventSetFree(void *set) { BEGIN; sets--; free(set); return OK; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long kinds, void *set) {
    BEGIN;
    ((Set *)set)->devices |= 1 << (uintptr_t)device;
    ((Set *)set)->kinds = kinds;
    return OK;
}
int nvmlEventSetWait_v2(void *raw, Event *out, unsigned limit_ms) {
    BEGIN;
    Set *set = raw;
    struct timespec until;
    int code = TIMEOUT, late = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)limit_ms % 1000 * 1000000;
    until.tv_sec += limit_ms / 1000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&lock);
    while (code == TIMEOUT && !late) {
        if (gone) {
            code = GPU_IS_LOST;
        } else if (pending.device && set->devices >> (uintptr_t)pending.device & 1 && set->kinds & pending.kind) {
            *out = pending;
            pending.device = NULL;
            code = OK;
        } else {
            late = pthread_cond_timedwait(&befallen, &lock, &until);
        }
    }
    pthread_mutex_unlock(&lock);
    return code;
}
