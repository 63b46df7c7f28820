// One UCX context with one worker: what both sides of the ucx transport stand on.
#pragma once

#include <ucp/api/ucp.h>

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace ucx {

using Clock = std::chrono::steady_clock;

class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

void check(ucs_status_t status, const std::string &what);

// Numeric address or name; the first one the resolver gives.
class SocketAddress {
public:
    SocketAddress(const std::string &host, std::uint16_t port);
    ucs_sock_addr_t get() const { return {reinterpret_cast<const sockaddr *>(&storage_), size_}; }
    bool is_loopback() const;

private:
    sockaddr_storage storage_{};
    socklen_t size_ = 0;
};

// What an address points into: `host`, or `cuda` for memory of an NVIDIA GPU; throws Error for other names.
ucs_memory_type_t memory_type(const std::string &name);
// Whether the UCX that was loaded can move memory of NVIDIA GPUs: its module for CUDA is there and finds a driver.
bool supports_cuda();

// Which peers and which memory a worker is for.
struct Reach {
    bool loopback_only;  // keeps UCX off every network device but the loopback
    bool devices;        // blocks lie on GPUs
};

// Not thread-safe, `wake` and `sleep` excepted: one caller at a time (UCS_THREAD_MODE_SERIALIZED).
class Worker {
public:
    // `client_id` is shown to listeners.
    Worker(Reach reach, std::uint64_t client_id);
    ~Worker();
    Worker(const Worker &) = delete;
    Worker &operator=(const Worker &) = delete;

    ucp_context_h context() const { return context_; }
    ucp_worker_h handle() const { return worker_; }

    bool progress() { return ucp_worker_progress(worker_) != 0; }
    // True: nothing is left to do, and the next event makes `events` readable.
    bool armed();
    int events() const { return events_; }
    // From any thread.
    void wake() { ucp_worker_signal(worker_); }

private:
    ucp_context_h context_ = nullptr;
    ucp_worker_h worker_ = nullptr;
    int events_ = -1;
};

// Until `events` is readable or `at_most` has passed.
void sleep_on(int events, std::chrono::milliseconds at_most);

// Closes at once, without the peer's consent: operations in flight end as cancelled.
// Returns a request to progress, or nullptr.
void *force_close(ucp_ep_h endpoint);

}  // namespace ucx
