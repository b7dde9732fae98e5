/* Work in parts.  Where the host program brings an OpenMP runtime (PyTorch does), its threads do it: they are the ones
 * that have just worked on x, and a second pool would fight with them for the cores while they still spin.  Elsewhere a
 * small pool of our own.  Each part is done once by whoever comes first, so which thread does it changes nothing.
 */
#include <pthread.h>
#include <unistd.h>

#include "internal.h"

typedef struct {
    part_function function;
    void *context;
    int64_t parts;
    int64_t next;
} work;

static void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);

void secateur_set_gomp(void *address) {
    memcpy(&gomp_parallel, &address, sizeof address);
}

static void take_parts(void *argument) {
    work *w = argument;
    for (;;) {
        const int64_t part = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
        if (part >= w->parts) return;
        w->function(w->context, part);
    }
}

/* The pool: helpers sleep on `wake` until the round changes.  One job at a time; who finds it busy works alone. */
static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static work *current;
static int64_t helpers, wanted, running, round_number;
static pid_t owner;

static void *help(void *argument) {
    int64_t seen = (int64_t)(intptr_t)argument;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (round_number == seen || wanted == 0) {
            if (round_number != seen) seen = round_number;
            pthread_cond_wait(&wake, &lock);
        }
        seen = round_number;
        wanted--;
        running++;
        work *w = current;
        pthread_mutex_unlock(&lock);
        take_parts(w);
        pthread_mutex_lock(&lock);
        if (--running == 0) pthread_cond_signal(&done);
    }
    return 0;
}

static void pool_run(work *w, int64_t threads) {
    if (pthread_mutex_trylock(&busy) != 0) {
        take_parts(w);
        return;
    }
    pthread_mutex_lock(&lock);
    if (owner != getpid()) { /* after a fork the helpers are gone */
        owner = getpid();
        helpers = running = 0;
    }
    while (helpers < threads - 1) {
        pthread_t thread;
        if (pthread_create(&thread, 0, help, (void *)(intptr_t)round_number) != 0) break;
        pthread_detach(thread);
        helpers++;
    }
    current = w;
    wanted = helpers < threads - 1 ? helpers : threads - 1;
    round_number++;
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
    take_parts(w);
    pthread_mutex_lock(&lock);
    wanted = 0; /* nothing is left for those who have not woken yet */
    while (running) pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&busy);
}

void secateur_parallel(part_function function, void *context, int64_t parts, int64_t threads) {
    work w = {function, context, parts, 0};
    if (threads > parts) threads = parts;
    if (threads <= 1) take_parts(&w);
    else if (gomp_parallel) gomp_parallel(take_parts, &w, (unsigned)threads, 0);
    else pool_run(&w, threads);
}
