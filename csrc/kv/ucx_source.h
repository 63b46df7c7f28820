// The source's side: a mapped pool, a listener, and a thread that answers where hardware does not.
#pragma once

#include <atomic>
#include <cstddef>
#include <list>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "ucx_worker.h"

namespace ucx {

// Consumers read the pool with one-sided gets. Between hosts without RDMA, UCX emulates those with messages, which the
// thread answers; it sleeps on the worker's events otherwise. Whoever connects must show an admitted id.
// What consumers may read.
struct Region {
    void *data;
    std::size_t bytes;
    ucs_memory_type_t type;
};

class Source {
public:
    // `regions` must stay mapped until `close`. With memory of GPUs, `driver_context` is the CUcontext it belongs to.
    Source(const std::string &host, const std::vector<Region> &regions, std::uint64_t driver_context = 0);
    ~Source() { close(); }

    std::uint16_t port() const { return port_; }
    // Packed key to a region; what `Link` takes.
    const std::string &key(std::size_t region) const { return keys_.at(region); }
    std::size_t consumers() const { return num_consumers_; }
    // Why the thread gave up; empty while it serves.
    std::string failure();

    void admit(std::uint64_t client_id);
    // No new connection with this id; those there are closed.
    void revoke(std::uint64_t client_id);
    // Returns when nothing reads the pool on behalf of this object any more.
    void close();

private:
    struct Consumer {
        std::uint64_t client_id;
        ucp_ep_h endpoint = nullptr;
        bool lost = false;
        void *closing = nullptr;
    };

    static void on_connection(ucp_conn_request_h request, void *self);
    static void on_error(void *consumer, ucp_ep_h endpoint, ucs_status_t status);

    void map(const Region &region);
    void listen(const SocketAddress &address);
    void release();
    void run();
    void serve();
    void accept_pending();
    void drop(bool everyone);
    void reap_closed();

    Worker worker_;
    std::uint64_t driver_context_;
    std::vector<ucp_mem_h> memory_;
    ucp_listener_h listener_ = nullptr;
    std::vector<std::string> keys_;
    std::uint16_t port_ = 0;

    std::mutex mutex_;
    std::set<std::uint64_t> admitted_;
    bool revoked_ = false;
    std::string failure_;
    std::atomic<bool> stopping_ = false;
    std::atomic<std::size_t> num_consumers_ = 0;

    // The thread's own.
    std::vector<std::pair<ucp_conn_request_h, std::uint64_t>> pending_;
    std::list<Consumer> consumers_;
    std::list<Consumer> closing_;  // kept until UCX can no longer report an error of theirs
    std::thread thread_;
};

}  // namespace ucx
