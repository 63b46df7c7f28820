// The consumer's side: one endpoint to a source's pool, read with one-sided gets.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "ucx_worker.h"

namespace ucx {

// Blocking; several threads may read at once. Whichever of them is free to progresses the worker for all; it spins for
// a moment, then sleeps on the worker's events, so that a slow peer costs no processor.
class Link {
public:
    using Limit = std::chrono::duration<double>;

    // Connects and shows `client_id`; throws Error within `limit`.
    Link(const std::string &host, std::uint16_t port, std::uint64_t client_id, const std::string &key, Limit limit);
    ~Link() { close(); }

    // Copies remote memory. Once this has returned or thrown, nothing writes to `dest` any more.
    void get(void *dest, std::size_t bytes, std::uint64_t address, Limit limit);
    // Copies a block, and then the generation that guards it: the second get starts when the first has ended.
    std::uint64_t get_granted(void *dest, std::size_t bytes, std::uint64_t address, std::uint64_t generation,
                              Limit limit);
    // Ends gets under way with Error; returns when they have ended.
    void close();

private:
    using Lock = std::unique_lock<std::mutex>;
    struct Operation {
        bool done = false;
        ucs_status_t status = UCS_OK;
    };

    static void on_sent(void *request, ucs_status_t status, void *operation);
    static void on_error(void *self, ucp_ep_h endpoint, ucs_status_t status);

    void connect(const SocketAddress &address, const std::string &key, Clock::time_point until);
    void get_locked(Lock &lock, void *dest, std::size_t bytes, std::uint64_t address, Clock::time_point until);
    // Takes the handle that a UCX call gave, waits for its end, throws what went wrong.
    void finish(Lock &lock, void *handle, Operation &operation, const char *what, Clock::time_point until);
    void lead(Lock &lock, const Operation &operation, Clock::time_point until);
    bool is_ended() const { return closing_ || broken_ != UCS_OK || worker_ == nullptr; }
    // Closes the endpoint and sees all operations to their end; the worker goes too if they do not end by themselves.
    void abandon();
    void release_worker();

    std::mutex mutex_;
    std::condition_variable changed_;
    std::unique_ptr<Worker> worker_;
    int events_ = -1;  // our own descriptor of the worker's events: outlives the worker
    ucp_ep_h endpoint_ = nullptr;
    ucp_rkey_h key_ = nullptr;
    std::set<Operation *> operations_;
    ucs_status_t broken_ = UCS_OK;
    bool closing_ = false;
    bool led_ = false;       // one reader progresses the worker
    bool sleeping_ = false;  // and has let go of the lock
    int readers_ = 0;
};

}  // namespace ucx
