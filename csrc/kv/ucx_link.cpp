#include "ucx_link.h"

#include <unistd.h>

#include <algorithm>

namespace ucx {

namespace {
constexpr std::chrono::microseconds spin{20};
constexpr std::chrono::milliseconds longest_sleep{100};
constexpr std::chrono::seconds abandon_limit{2};

Clock::time_point after(Link::Limit limit) { return Clock::now() + std::chrono::duration_cast<Clock::duration>(limit); }
}  // namespace

Link::Link(const std::string &host, std::uint16_t port, std::uint64_t client_id, const std::string &key, Limit limit) {
    const SocketAddress address(host, port);
    worker_ = std::make_unique<Worker>(address.is_loopback(), client_id);
    events_ = dup(worker_->events());
    try {
        if (events_ < 0)
            throw Error("no descriptor left for UCX");
        connect(address, key, after(limit));
    } catch (...) {
        close();
        throw;
    }
}

void Link::connect(const SocketAddress &address, const std::string &key, Clock::time_point until) {
    Lock lock(mutex_);
    ucp_ep_params_t params{};
    params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR | UCP_EP_PARAM_FIELD_ERR_HANDLER |
                        UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER | UCP_EP_PARAMS_FLAGS_SEND_CLIENT_ID;
    params.sockaddr = address.get();
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler = {&Link::on_error, this};
    check(ucp_ep_create(worker_->handle(), &params, &endpoint_), "UCX cannot connect");
    // The key is unpacked for the ways the endpoint has; those are known once it is connected.
    Operation operation;
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    param.cb.send = &Link::on_sent;
    param.user_data = &operation;
    finish(lock, ucp_ep_flush_nbx(endpoint_, &param), operation, "UCX cannot connect", until);
    check(ucp_ep_rkey_unpack(endpoint_, key.data(), &key_), "UCX cannot read the pool's key");
}

void Link::get(void *dest, std::size_t bytes, std::uint64_t address, Limit limit) {
    Lock lock(mutex_);
    get_locked(lock, dest, bytes, address, after(limit));
}

std::uint64_t Link::get_granted(void *dest, std::size_t bytes, std::uint64_t address, std::uint64_t generation,
                                Limit limit) {
    const auto until = after(limit);
    std::uint64_t seen = 0;
    Lock lock(mutex_);
    get_locked(lock, dest, bytes, address, until);
    get_locked(lock, &seen, sizeof seen, generation, until);
    return seen;
}

void Link::get_locked(Lock &lock, void *dest, std::size_t bytes, std::uint64_t address, Clock::time_point until) {
    if (is_ended())
        throw Error(broken_ != UCS_OK ? ucs_status_string(broken_) : "closed");
    Operation operation;
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
    param.cb.send = &Link::on_sent;
    param.user_data = &operation;
    param.memory_type = UCS_MEMORY_TYPE_HOST;
    finish(lock, ucp_get_nbx(endpoint_, dest, bytes, address, key_, &param), operation, "UCX get", until);
}

void Link::finish(Lock &lock, void *handle, Operation &operation, const char *what, Clock::time_point until) {
    if (!UCS_PTR_IS_PTR(handle)) {
        check(UCS_PTR_STATUS(handle), what);
        return;
    }
    operations_.insert(&operation);
    ++readers_;
    if (sleeping_)
        worker_->wake();  // what was just started may need more than events to go on
    bool late = false;
    while (!operation.done && !is_ended() && !late) {
        if (led_)
            changed_.wait_until(lock, until);
        else
            lead(lock, operation, until);
        late = Clock::now() >= until;
    }
    const ucs_status_t broken = broken_;
    if (!operation.done)
        abandon();
    operations_.erase(&operation);
    --readers_;
    changed_.notify_all();
    if (late && broken == UCS_OK && operation.status != UCS_OK)
        throw Error(std::string(what) + ": timed out");
    check(broken != UCS_OK && operation.status != UCS_OK ? broken : operation.status, what);
}

void Link::lead(Lock &lock, const Operation &operation, Clock::time_point until) {
    led_ = true;
    auto spin_until = Clock::now() + spin;
    while (!operation.done && !is_ended()) {
        const bool moved = worker_->progress();
        const auto now = Clock::now();
        if (now >= until)
            break;
        if (moved)
            spin_until = now + spin;
        if (operations_.size() > 1)
            changed_.notify_all();  // others' may be done
        if (operation.done || is_ended() || now < spin_until || !worker_->armed())
            continue;
        sleeping_ = true;
        lock.unlock();
        sleep_on(events_, longest_sleep);
        lock.lock();
        sleeping_ = false;
    }
    led_ = false;
    changed_.notify_all();
}

void Link::on_sent(void *request, ucs_status_t status, void *operation) {
    auto &ended = *static_cast<Operation *>(operation);
    ended.status = status;
    ended.done = true;
    ucp_request_free(request);
}

void Link::on_error(void *self, ucp_ep_h, ucs_status_t status) { static_cast<Link *>(self)->broken_ = status; }

void Link::abandon() {
    if (broken_ == UCS_OK)
        broken_ = closing_ ? UCS_ERR_CANCELED : UCS_ERR_TIMED_OUT;
    if (worker_ == nullptr)
        return;
    void *closing = nullptr;
    if (endpoint_ != nullptr) {
        closing = force_close(endpoint_);
        endpoint_ = nullptr;
    }
    const auto open = [&] {
        return std::ranges::any_of(operations_, [](const Operation *operation) { return !operation->done; }) || (closing != nullptr && ucp_request_check_status(closing) == UCS_INPROGRESS);
    };
    for (const auto until = Clock::now() + abandon_limit; open() && Clock::now() < until;) {
        if (!worker_->progress())
            sleep_on(events_, std::chrono::milliseconds(1));
    }
    const bool stuck = open();
    if (closing != nullptr)
        ucp_request_free(closing);
    if (stuck)
        release_worker();
    changed_.notify_all();
}

void Link::release_worker() {
    if (key_ != nullptr)
        ucp_rkey_destroy(key_);
    key_ = nullptr;
    worker_.reset();  // no device writes for it after this
    for (Operation *operation : operations_)
        if (!operation->done)
            *operation = {true, UCS_ERR_CANCELED};
}

void Link::close() {
    Lock lock(mutex_);
    closing_ = true;
    if (worker_ != nullptr)
        worker_->wake();
    changed_.notify_all();
    while (readers_ > 0)  // each sees `closing_` within one of its sleeps
        changed_.wait_for(lock, longest_sleep);
    if (worker_ != nullptr) {
        abandon();
        release_worker();
    }
    if (events_ >= 0)
        ::close(events_);
    events_ = -1;
}

}  // namespace ucx
