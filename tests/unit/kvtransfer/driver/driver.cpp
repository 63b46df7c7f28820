// A CUDA driver of host memory, for tests of kvtransfer.cuda_runtime: what it exports is compared with cuda.h by this
// compilation, so that arguments go where the header says. Work is done at once; events are not done when first asked for.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <utility>

namespace {
thread_local CUcontext current = nullptr;
const auto the_context = reinterpret_cast<CUcontext>(0x1234);
std::map<CUdeviceptr, size_t> memory;
std::set<void *> registered;
thread_local CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
// As if another thread were capturing all the time.
CUresult entered() {
    if (current != the_context)
        return CUDA_ERROR_INVALID_CONTEXT;
    return mode == CU_STREAM_CAPTURE_MODE_RELAXED ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}
struct Event {
    int asked;
};
}  // namespace

extern "C" {

CUresult cuInit(unsigned flags) { return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuDeviceGetCount(int *count) { return *count = 2, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { return *device = ordinal + 40, CUDA_SUCCESS; }
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    for (int i = 0; i < 16; ++i)
        uuid->bytes[i] = static_cast<char>(device == 40 ? i : 0xf0 + i);
    return CUDA_SUCCESS;
}
CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    *can = device == 41 && peer == 40;
    return entered();
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) { return *context = the_context, CUDA_SUCCESS; }
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *wanted) { return std::swap(mode, *wanted), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return current = context, CUDA_SUCCESS; }

CUresult cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = size_t{5} << 32, *total = size_t{6} << 32, entered(); }
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    if (bytes > size_t{1} << 40)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *address = reinterpret_cast<CUdeviceptr>(std::malloc(bytes));
    memory[*address] = bytes;
    return entered();
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    if (memory.erase(address) == 0)
        return CUDA_ERROR_INVALID_VALUE;
    std::free(reinterpret_cast<void *>(address));
    return entered();
}
CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr address) {
    const auto after = memory.upper_bound(address);
    if (after == memory.begin())
        return CUDA_ERROR_NOT_FOUND;
    const auto found = std::prev(after);
    return *base = found->first, *bytes = found->second, entered();
}
// A handle says its address in its last bytes: one that was cut or moved on its way opens nothing.
CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr address) {
    std::memset(handle, 0, sizeof *handle);
    handle->reserved[0] = 7;
    std::memcpy(handle->reserved + CU_IPC_HANDLE_SIZE - 8, &address, 8);
    return entered();
}
CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *address, CUipcMemHandle handle, unsigned flags) {
    if (handle.reserved[0] != 7 || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
        return CUDA_ERROR_INVALID_HANDLE;
    std::memcpy(address, handle.reserved + CU_IPC_HANDLE_SIZE - 8, 8);
    return entered();
}
CUresult cuIpcCloseMemHandle(CUdeviceptr address) { return memory.count(address) ? entered() : CUDA_ERROR_INVALID_VALUE; }
CUresult cuMemHostAlloc(void **place, size_t bytes, unsigned flags) {
    if (flags != (CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP))
        return CUDA_ERROR_INVALID_VALUE;
    return *place = std::malloc(bytes), entered();
}
CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *place, unsigned flags) {
    return *address = reinterpret_cast<CUdeviceptr>(place), flags ? CUDA_ERROR_INVALID_VALUE : entered();
}
CUresult cuMemHostRegister_v2(void *place, size_t bytes, unsigned flags) {
    if (reinterpret_cast<size_t>(place) % 4096 || bytes % 4096 || flags != (CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP))
        return CUDA_ERROR_INVALID_VALUE;
    return registered.insert(place).second ? entered() : CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
}
CUresult cuMemHostUnregister(void *place) {
    return registered.erase(place) ? entered() : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}
CUresult cuMemFreeHost(void *place) { return std::free(place), entered(); }
CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    *stream = static_cast<CUstream>(std::malloc(8));
    return flags == CU_STREAM_NON_BLOCKING ? entered() : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuStreamDestroy_v2(CUstream stream) { return std::free(stream), entered(); }
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    return stream && event && !flags ? entered() : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuEventCreate(CUevent *event, unsigned flags) {
    *event = reinterpret_cast<CUevent>(new Event{0});
    return flags == CU_EVENT_DISABLE_TIMING ? entered() : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuEventDestroy_v2(CUevent event) { return delete reinterpret_cast<Event *>(event), entered(); }
CUresult cuEventRecord(CUevent event, CUstream stream) {
    reinterpret_cast<Event *>(event)->asked = 0;
    return stream ? entered() : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuEventQuery(CUevent event) {
    if (entered() != CUDA_SUCCESS)
        return entered();
    return reinterpret_cast<Event *>(event)->asked++ ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes);
    return stream ? entered() : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    std::memset(reinterpret_cast<void *>(to), value, bytes);
    return stream ? entered() : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuGetErrorName(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR";
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "invalid argument";
    return CUDA_SUCCESS;
}

}
