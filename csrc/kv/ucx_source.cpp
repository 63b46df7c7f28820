#include "ucx_source.h"

#include <dlfcn.h>
#include <netinet/in.h>

#include <algorithm>

namespace ucx {

namespace {
constexpr std::size_t max_consumers = 256;
constexpr int progress_burst = 1000;
constexpr std::chrono::milliseconds idle_sleep{1000};
constexpr std::chrono::seconds close_limit{2};

bool on_devices(const std::vector<Region> &regions) {
    return std::any_of(regions.begin(), regions.end(),
                       [](const Region &region) { return region.type != UCS_MEMORY_TYPE_HOST; });
}

// The driver keeps a current context for each thread, and UCX copies in that of whoever progresses it. Nor may its calls
// spoil a graph that another thread captures. Whoever has a context has loaded the driver.
void enter(std::uint64_t driver_context) {
    if (driver_context == 0)
        return;
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    auto *set_current = driver ? reinterpret_cast<int (*)(void *)>(dlsym(driver, "cuCtxSetCurrent")) : nullptr;
    auto *set_mode =
        driver ? reinterpret_cast<int (*)(int *)>(dlsym(driver, "cuThreadExchangeStreamCaptureMode")) : nullptr;
    int relaxed = 2;
    if (set_current == nullptr || set_mode == nullptr || set_current(reinterpret_cast<void *>(driver_context)) != 0 ||
        set_mode(&relaxed) != 0)
        throw Error("the CUDA context cannot be entered");
}
}  // namespace

Source::Source(const std::string &host, const std::vector<Region> &regions, std::uint64_t driver_context)
    : worker_({SocketAddress(host, 0).is_loopback(), on_devices(regions)}, 0), driver_context_(driver_context) {
    try {
        for (const Region &region : regions)
            map(region);
        listen(SocketAddress(host, 0));
        thread_ = std::thread(&Source::run, this);
    } catch (...) {
        release();
        throw;
    }
}

void Source::map(const Region &region) {
    ucp_mem_map_params_t params{};
    params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                        UCP_MEM_MAP_PARAM_FIELD_PROT | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
    params.address = region.data;
    params.length = region.bytes;
    params.prot = UCP_MEM_MAP_PROT_LOCAL_READ | UCP_MEM_MAP_PROT_REMOTE_READ;
    params.memory_type = region.type;
    ucp_mem_h mapped = nullptr;
    check(ucp_mem_map(worker_.context(), &params, &mapped), "UCX cannot map the pool");
    memory_.push_back(mapped);
    void *packed = nullptr;
    std::size_t size = 0;
    check(ucp_rkey_pack(worker_.context(), mapped, &packed, &size), "UCX cannot pack the pool's key");
    keys_.emplace_back(static_cast<const char *>(packed), size);
    ucp_rkey_buffer_release(packed);
}

void Source::listen(const SocketAddress &address) {
    ucp_listener_params_t params{};
    params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
    params.sockaddr = address.get();
    params.conn_handler = {&Source::on_connection, this};
    check(ucp_listener_create(worker_.handle(), &params, &listener_), "UCX cannot listen");
    ucp_listener_attr_t bound{};
    bound.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
    check(ucp_listener_query(listener_, &bound), "UCX listener");
    const auto *any = reinterpret_cast<const sockaddr *>(&bound.sockaddr);
    port_ = ntohs(any->sa_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6 *>(any)->sin6_port
                                             : reinterpret_cast<const sockaddr_in *>(any)->sin_port);
}

void Source::admit(std::uint64_t client_id) {
    std::lock_guard lock(mutex_);
    admitted_.insert(client_id);
}

void Source::revoke(std::uint64_t client_id) {
    std::lock_guard lock(mutex_);
    admitted_.erase(client_id);
    revoked_ = true;
    if (!stopping_)
        worker_.wake();
}

void Source::close() {
    {
        std::lock_guard lock(mutex_);
        if (stopping_)
            return;
        stopping_ = true;
        worker_.wake();
    }
    thread_.join();
    release();
}

void Source::release() {
    if (listener_ != nullptr)
        ucp_listener_destroy(listener_);
    for (ucp_mem_h mapped : memory_)
        ucp_mem_unmap(worker_.context(), mapped);
    listener_ = nullptr;
    memory_.clear();
}

std::string Source::failure() {
    std::lock_guard lock(mutex_);
    return failure_;
}

void Source::run() {
    try {
        enter(driver_context_);
        serve();
    } catch (const Error &error) {
        std::lock_guard lock(mutex_);
        failure_ = error.what();
    }
    for (auto &[request, client_id] : pending_)
        ucp_listener_reject(listener_, request);
    drop(true);
    // What is not closed by then ends with the worker.
    for (const auto until = Clock::now() + close_limit; !closing_.empty() && Clock::now() < until; reap_closed()) {
        if (!worker_.progress())
            sleep_on(worker_.events(), std::chrono::milliseconds(1));
    }
}

void Source::serve() {
    while (!stopping_) {
        for (int i = 0; i < progress_burst && worker_.progress(); ++i) {
        }
        accept_pending();
        drop(false);
        reap_closed();
        if (worker_.armed())
            sleep_on(worker_.events(), idle_sleep);
    }
}

void Source::on_connection(ucp_conn_request_h request, void *self) {
    ucp_conn_request_attr_t shown{};
    shown.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ID;
    const bool known = ucp_conn_request_query(request, &shown) == UCS_OK;
    static_cast<Source *>(self)->pending_.emplace_back(request, known ? shown.client_id : 0);
}

void Source::on_error(void *consumer, ucp_ep_h, ucs_status_t) {
    static_cast<Consumer *>(consumer)->lost = true;
}

void Source::accept_pending() {
    for (auto &[request, client_id] : pending_) {
        bool welcome = consumers_.size() < max_consumers;
        {
            std::lock_guard lock(mutex_);
            welcome = welcome && admitted_.contains(client_id);
        }
        if (!welcome) {
            ucp_listener_reject(listener_, request);
            continue;
        }
        Consumer &consumer = consumers_.emplace_back(Consumer{client_id});
        ucp_ep_params_t params{};
        params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST | UCP_EP_PARAM_FIELD_ERR_HANDLER |
                            UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
        params.conn_request = request;
        params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
        params.err_handler = {&Source::on_error, &consumer};
        if (ucp_ep_create(worker_.handle(), &params, &consumer.endpoint) != UCS_OK)
            consumers_.pop_back();  // the consumer sees its connection refused
    }
    pending_.clear();
    num_consumers_ = consumers_.size();
}

void Source::drop(bool everyone) {
    {
        std::lock_guard lock(mutex_);
        if (revoked_)
            for (Consumer &consumer : consumers_)
                consumer.lost = consumer.lost || !admitted_.contains(consumer.client_id);
        revoked_ = false;
    }
    for (auto consumer = consumers_.begin(); consumer != consumers_.end();) {
        if (!consumer->lost && !everyone) {
            ++consumer;
            continue;
        }
        const auto gone = consumer++;
        gone->closing = force_close(gone->endpoint);
        if (gone->closing != nullptr)
            closing_.splice(closing_.end(), consumers_, gone);
        else
            consumers_.erase(gone);
    }
    num_consumers_ = consumers_.size();
}

void Source::reap_closed() {
    std::erase_if(closing_, [](const Consumer &consumer) {
        if (ucp_request_check_status(consumer.closing) == UCS_INPROGRESS)
            return false;
        ucp_request_free(consumer.closing);
        return true;
    });
}

}  // namespace ucx
