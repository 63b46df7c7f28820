// NCCL over host memory, for tests of whole hand-offs beside driver.cpp: two ranks and a Unix socket between them. Does not
// block, as a communicator with `blocking = 0`: making one and moving bytes take place on a thread, and
// ncclCommGetAsyncError tells when. A peer that dies is not noticed: that is left to whoever calls ncclCommAbort.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstddef>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

extern "C" {

struct ncclUniqueId {
    char internal[128];
};
enum ncclResult_t { ncclSuccess = 0, ncclInvalidArgument = 4, ncclInvalidUsage = 5, ncclInProgress = 7 };
}

namespace {
struct Move {
    char *place;
    size_t bytes;
    bool send;
};
struct Comm {
    int listener = -1, socket = -1, waked = -1, waker = -1;
    std::atomic<bool> busy{false};
    std::thread work;
    std::vector<Move> group;
};
thread_local Comm *grouped = nullptr;
thread_local bool in_group = false;
int offered = -1;  // of the last id made here, which rank 0 takes

sockaddr_un address_of(const ncclUniqueId &id) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, id.internal, 32);
    return address;
}
void begin(Comm *comm, void (*work)(Comm *)) {
    if (comm->work.joinable())
        comm->work.join();
    comm->busy = true;
    comm->work = std::thread([=] {
        work(comm);
        comm->busy = false;
    });
}
// What the peer leaves undone is waited for: only an abort ends it.
void wait_for_abort(Comm *comm) {
    char word;
    while (recv(comm->waked, &word, 1, 0) > 0) {
    }
}
ncclResult_t add(Comm *comm, void *place, size_t bytes, int type, bool send) {
    if (!in_group || comm->busy || type != 1)
        return ncclInvalidUsage;
    grouped = comm;
    comm->group.push_back({static_cast<char *>(place), bytes, send});
    return ncclInProgress;
}
}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int *version) { return *version = 23203, ncclSuccess; }
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    std::random_device random;
    for (char &c : id->internal)
        c = static_cast<char>('a' + random() % 26);
    const sockaddr_un address = address_of(*id);
    offered = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bind(offered, reinterpret_cast<const sockaddr *>(&address), offsetof(sockaddr_un, sun_path) + 33);
    listen(offered, 1);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(Comm **made, int, ncclUniqueId id, int rank, void *) {
    Comm *comm = *made = new Comm;
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
    comm->waked = pair[0];
    comm->waker = pair[1];
    if (rank == 0) {
        comm->listener = offered;
        begin(comm, [](Comm *self) { self->socket = accept(self->listener, nullptr, nullptr); });
    } else {
        const sockaddr_un address = address_of(id);
        comm->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(comm->socket, reinterpret_cast<const sockaddr *>(&address), offsetof(sockaddr_un, sun_path) + 33) != 0)
            return ncclInvalidArgument;
    }
    return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(Comm *comm, ncclResult_t *state) {
    return *state = comm->busy ? ncclInProgress : ncclSuccess, ncclSuccess;
}
ncclResult_t ncclCommAbort(Comm *comm) {
    for (int fd : {comm->waker, comm->listener, comm->socket})
        shutdown(fd, SHUT_RDWR);
    if (comm->work.joinable())
        comm->work.join();
    for (int fd : {comm->waked, comm->waker, comm->listener, comm->socket})
        close(fd);
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclGroupStart() { return in_group = true, ncclSuccess; }
ncclResult_t ncclGroupEnd() {
    in_group = false;
    if (Comm *comm = std::exchange(grouped, nullptr))
        begin(comm, [](Comm *self) {
            for (const Move &move : std::exchange(self->group, {}))
                for (size_t done = 0; done < move.bytes;) {
                    const ssize_t count = move.send ? send(self->socket, move.place + done, move.bytes - done, MSG_NOSIGNAL)
                                                    : recv(self->socket, move.place + done, move.bytes - done, 0);
                    if (count <= 0)
                        return wait_for_abort(self);
                    done += static_cast<size_t>(count);
                }
        });
    return ncclInProgress;
}
ncclResult_t ncclSend(void *from, size_t bytes, int type, int peer, Comm *comm, void *stream) {
    return peer == 1 && stream ? add(comm, from, bytes, type, true) : ncclInvalidArgument;
}
ncclResult_t ncclRecv(void *to, size_t bytes, int type, int peer, Comm *comm, void *stream) {
    return peer == 0 && stream ? add(comm, to, bytes, type, false) : ncclInvalidArgument;
}
const char *ncclGetErrorString(ncclResult_t code) { return code == ncclInvalidUsage ? "invalid usage" : "invalid argument"; }
const char *ncclGetLastError(void *) { return ""; }

}
