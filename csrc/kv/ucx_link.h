// The consumer's side: one endpoint to a source's pool, read with one-sided gets.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ucx_worker.h"

namespace ucx {

// Blocking, one get at a time: who wants several in flight opens several. A get progresses its own worker; it spins for
// a moment, then sleeps on the worker's events, so that a slow peer costs no processor.
class Link {
public:
    using Limit = std::chrono::duration<double>;

    // Connects and shows `client_id`; throws Error within `limit`. `keys` are of the source's regions: of one that
    // holds all, or of the table and of the blocks, which lie in `block_memory` on both sides.
    Link(const std::string &host, std::uint16_t port, std::uint64_t client_id, const std::vector<std::string> &keys,
         ucs_memory_type_t block_memory, Limit limit);
    ~Link() { close(); }

    // Copies memory of the first region to the host. Once this has returned or thrown, nothing writes to `dest` any more; a link that has thrown
    // is of no further use.
    void get(void *dest, std::size_t bytes, std::uint64_t address, Limit limit);
    // Copies a block of the last region, and then the generation that guards it: the second get starts when the first has ended.
    std::uint64_t get_granted(void *dest, std::size_t bytes, std::uint64_t address, std::uint64_t generation,
                              Limit limit);
    // From any thread: ends a get under way with Error, and returns when it has ended.
    void close();

private:
    struct Operation {
        bool done = false;
        ucs_status_t status = UCS_OK;
    };

    static void on_done(void *request, ucs_status_t status, void *operation);
    static void on_error(void *self, ucp_ep_h endpoint, ucs_status_t status);

    void connect(const SocketAddress &address, const std::vector<std::string> &keys, Clock::time_point until);
    void read(void *dest, ucs_memory_type_t type, std::size_t bytes, ucp_rkey_h key, std::uint64_t address,
              Clock::time_point until);
    // Takes the handle that a UCX call gave, sees the operation to its end, throws what went wrong.
    void finish(void *handle, Operation &operation, const char *what, Clock::time_point until);
    // None on a link that has ended, which `read` notices first.
    ucp_rkey_h first_key() const { return keys_.empty() ? nullptr : keys_.front(); }
    ucp_rkey_h last_key() const { return keys_.empty() ? nullptr : keys_.back(); }
    bool is_ended() const { return closing_ || broken_ != UCS_OK; }
    // Closes the endpoint; the worker goes too if `operation` (may be null) does not end by that.
    void abandon(const Operation *operation);
    void release_worker();

    std::mutex mutex_;         // held for the length of a get
    std::mutex worker_mutex_;  // `worker_` may be woken by who does not hold `mutex_`
    std::unique_ptr<Worker> worker_;
    ucp_ep_h endpoint_ = nullptr;
    std::vector<ucp_rkey_h> keys_;
    ucs_memory_type_t block_memory_;
    ucs_status_t broken_ = UCS_OK;
    std::atomic<bool> closing_ = false;
};

}  // namespace ucx
