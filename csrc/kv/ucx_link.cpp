#include "ucx_link.h"

namespace ucx {

namespace {
constexpr std::chrono::microseconds spin{20};
constexpr std::chrono::milliseconds longest_sleep{100};
constexpr std::chrono::seconds abandon_limit{2};

Clock::time_point after(Link::Limit limit) { return Clock::now() + std::chrono::duration_cast<Clock::duration>(limit); }
}  // namespace

Link::Link(const std::string &host, std::uint16_t port, std::uint64_t client_id, const std::vector<std::string> &keys,
           ucs_memory_type_t block_memory, Limit limit)
    : block_memory_(block_memory) {
    const SocketAddress address(host, port);
    worker_ = std::make_unique<Worker>(Reach{address.is_loopback(), block_memory != UCS_MEMORY_TYPE_HOST}, client_id);
    try {
        connect(address, keys, after(limit));
    } catch (...) {
        close();
        throw;
    }
}

void Link::connect(const SocketAddress &address, const std::vector<std::string> &keys, Clock::time_point until) {
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
    param.cb.send = &Link::on_done;
    param.user_data = &operation;
    finish(ucp_ep_flush_nbx(endpoint_, &param), operation, "UCX cannot connect", until);
    for (const std::string &key : keys) {
        ucp_rkey_h unpacked = nullptr;
        check(ucp_ep_rkey_unpack(endpoint_, key.data(), &unpacked), "UCX cannot read the pool's key");
        keys_.push_back(unpacked);
    }
}

void Link::get(void *dest, std::size_t bytes, std::uint64_t address, Limit limit) {
    const auto until = after(limit);
    std::lock_guard lock(mutex_);
    read(dest, UCS_MEMORY_TYPE_HOST, bytes, first_key(), address, until);
}

std::uint64_t Link::get_granted(void *dest, std::size_t bytes, std::uint64_t address, std::uint64_t generation,
                                Limit limit) {
    const auto until = after(limit);
    std::uint64_t seen = 0;
    std::lock_guard lock(mutex_);
    read(dest, block_memory_, bytes, last_key(), address, until);
    read(&seen, UCS_MEMORY_TYPE_HOST, sizeof seen, first_key(), generation, until);
    return seen;
}

void Link::read(void *dest, ucs_memory_type_t type, std::size_t bytes, ucp_rkey_h key, std::uint64_t address,
                Clock::time_point until) {
    if (is_ended())
        throw Error(closing_ ? "closed" : ucs_status_string(broken_));
    Operation operation;
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
    param.cb.send = &Link::on_done;
    param.user_data = &operation;
    param.memory_type = type;
    finish(ucp_get_nbx(endpoint_, dest, bytes, address, key, &param), operation, "UCX get", until);
}

void Link::finish(void *handle, Operation &operation, const char *what, Clock::time_point until) {
    if (!UCS_PTR_IS_PTR(handle)) {
        check(UCS_PTR_STATUS(handle), what);
        return;
    }
    auto now = Clock::now();
    auto spin_until = now + spin;
    while (!operation.done && !is_ended() && now < until) {
        const bool moved = worker_->progress();
        now = Clock::now();
        if (moved)
            spin_until = now + spin;
        else if (!operation.done && now >= spin_until && worker_->armed())
            sleep_on(worker_->events(), longest_sleep);
    }
    if (!operation.done) {
        if (broken_ == UCS_OK)
            broken_ = closing_ ? UCS_ERR_CANCELED : UCS_ERR_TIMED_OUT;
        abandon(&operation);
        check(broken_, what);
    }
    check(operation.status, what);
}

void Link::on_done(void *request, ucs_status_t status, void *operation) {
    *static_cast<Operation *>(operation) = {true, status};
    ucp_request_free(request);
}

void Link::on_error(void *self, ucp_ep_h, ucs_status_t status) { static_cast<Link *>(self)->broken_ = status; }

void Link::abandon(const Operation *operation) {
    if (endpoint_ == nullptr)
        return;
    void *closing = force_close(endpoint_);
    endpoint_ = nullptr;
    const auto is_open = [&] {
        return (operation != nullptr && !operation->done) ||
               (closing != nullptr && ucp_request_check_status(closing) == UCS_INPROGRESS);
    };
    for (const auto until = Clock::now() + abandon_limit; is_open() && Clock::now() < until;) {
        if (!worker_->progress())
            sleep_on(worker_->events(), std::chrono::milliseconds(1));
    }
    const bool stuck = is_open();
    if (closing != nullptr)
        ucp_request_free(closing);
    if (stuck)
        release_worker();
}

void Link::release_worker() {
    for (ucp_rkey_h key : keys_)
        ucp_rkey_destroy(key);
    keys_.clear();
    std::lock_guard lock(worker_mutex_);
    worker_.reset();  // no device writes for it after this
}

void Link::close() {
    closing_ = true;
    {
        std::lock_guard lock(worker_mutex_);
        if (worker_ != nullptr)
            worker_->wake();
    }
    std::lock_guard lock(mutex_);
    if (worker_ != nullptr) {
        abandon(nullptr);
        release_worker();
    }
}

}  // namespace ucx
