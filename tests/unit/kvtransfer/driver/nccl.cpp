// NCCL for one process, for tests of kvtransfer.nccl_library: says what it was called with. Where nccl.h is there, this
// compilation compares the names and arguments with it; otherwise they are written down here.
#if __has_include(<nccl.h>)
#include <nccl.h>
#else
#include <climits>
#include <cstddef>
struct ncclComm;
using ncclComm_t = ncclComm *;
using cudaStream_t = void *;
struct ncclUniqueId {
    char internal[128];
};
enum ncclResult_t { ncclSuccess = 0, ncclInvalidArgument = 4, ncclRemoteError = 6, ncclInProgress = 7 };
enum ncclDataType_t { ncclUint8 = 1 };
#define NCCL_CONFIG_UNDEF_INT INT_MIN
struct ncclConfig_t {
    size_t size;
    unsigned int magic, version;
    int blocking, cgaClusterSize, minCTAs, maxCTAs;
    const char *netName;
};
#endif

#include <cstdio>
#include <cstring>
#include <string>

namespace {
std::string calls;
int grouped = 0;
struct Made {
    int asked = 0, broken = 0;
};
ncclResult_t note(const char *name, const void *place, size_t count, int type, int peer, void *comm, void *stream) {
    char line[160];
    std::snprintf(line, sizeof line, "%s %zx %zu %d %d %d %zx;", name, reinterpret_cast<size_t>(place), count, type, peer,
                  grouped, reinterpret_cast<size_t>(stream));
    calls += line;
    if (count == 13)
        return ncclInvalidArgument;
    return comm ? ncclInProgress : ncclInvalidArgument;
}
}  // namespace

extern "C" {

const char *nccl_calls() { return calls.c_str(); }
void nccl_break(void *comm) { static_cast<Made *>(comm)->broken = 1; }

ncclResult_t ncclGetVersion(int *version) { return *version = NCCL_SAYS, ncclSuccess; }
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    for (int i = 0; i < 128; ++i)
        id->internal[i] = static_cast<char>(255 - i);
    return ncclSuccess;
}
// A settings' structure older than the library's is taken for what its size says, as NCCL does.
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
    ncclUniqueId mine;
    ncclGetUniqueId(&mine);
    const bool fine = config->magic == 0xcafebeef && config->version == 21700 && config->blocking == 0 &&
                      config->size == offsetof(ncclConfig_t, netName) + sizeof(char *) && config->netName == nullptr &&
                      config->cgaClusterSize == NCCL_CONFIG_UNDEF_INT && config->minCTAs == NCCL_CONFIG_UNDEF_INT &&
                      config->maxCTAs == NCCL_CONFIG_UNDEF_INT;
    if (!fine || ranks != 2 || rank != 1 || std::memcmp(&mine, &id, sizeof id) != 0)
        return ncclInvalidArgument;
    *comm = reinterpret_cast<ncclComm_t>(new Made);
    return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state) {
    Made *made = reinterpret_cast<Made *>(comm);
    *state = made->broken ? ncclRemoteError : made->asked++ ? ncclSuccess : ncclInProgress;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) { return delete reinterpret_cast<Made *>(comm), calls += "abort;", ncclSuccess; }
ncclResult_t ncclGroupStart() { return ++grouped, ncclSuccess; }
ncclResult_t ncclGroupEnd() { return --grouped, calls += "end;", ncclInProgress; }
ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    return note("send", from, count, type, peer, comm, stream);
}
ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    return note("receive", to, count, type, peer, comm, stream);
}
const char *ncclGetErrorString(ncclResult_t code) {
    return code == ncclRemoteError ? "remote process exited" : "invalid argument";
}
#if defined(NCCL_MAJOR)
const char *ncclGetLastError(ncclComm_t)
#else
const char *ncclGetLastError(void *)
#endif
{
    return "what it saw last";
}

}
