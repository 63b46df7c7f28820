#include "ucx_worker.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>

#include <cstdlib>
#include <cstring>

namespace ucx {

void check(ucs_status_t status, const std::string &what) {
    if (status != UCS_OK)
        throw Error(what + ": " + ucs_status_string(status));
}

SocketAddress::SocketAddress(const std::string &host, std::uint16_t port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo *found = nullptr;
    const int failed = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
    if (failed != 0)
        throw Error("no address of host '" + host + "': " + gai_strerror(failed));
    std::memcpy(&storage_, found->ai_addr, found->ai_addrlen);
    size_ = found->ai_addrlen;
    freeaddrinfo(found);
}

bool SocketAddress::is_loopback() const {
    if (storage_.ss_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6 &>(storage_).sin6_addr);
    return (ntohl(reinterpret_cast<const sockaddr_in &>(storage_).sin_addr.s_addr) >> 24) == IN_LOOPBACKNET;
}

namespace {
// The operator's UCX_<name> wins; an UCX that does not know the setting goes without.
void prefer(ucp_config_t *config, const char *name, const char *value) {
    if (std::getenv((std::string("UCX_") + name).c_str()) == nullptr)
        ucp_config_modify(config, name, value);
}
}  // namespace

ucs_memory_type_t memory_type(const std::string &name) {
    if (name == "host")
        return UCS_MEMORY_TYPE_HOST;
    if (name == "cuda")
        return UCS_MEMORY_TYPE_CUDA;
    throw Error("no memory '" + name + "'; known: host, cuda");
}

bool supports_cuda() {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES;
    params.features = UCP_FEATURE_RMA;
    ucp_context_h context = nullptr;
    check(ucp_init(&params, nullptr, &context), "UCX start");
    ucp_context_attr_t attributes{};
    attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
    const ucs_status_t status = ucp_context_query(context, &attributes);
    ucp_cleanup(context);
    check(status, "UCX context");
    return (attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0;
}

Worker::Worker(Reach reach, std::uint64_t client_id) {
    ucp_config_t *config = nullptr;
    check(ucp_config_read(nullptr, nullptr, &config), "UCX configuration");
    ucs_status_t status = UCS_OK;
    // No shared memory: posix and sysv do not notice the death of a peer, and with cma (1.21) the process aborts when a
    // peer goes while a get is queued. Peers on one host have the transport shm.
    // Nor its own mappings between GPUs: the transport cuda_ipc unmaps in order, and knows when a peer has.
    prefer(config, "TLS", reach.devices ? "^shm,cuda_ipc" : "^shm");
    // Emulated gets answer in pieces of a segment: with 8 KiB, the default, they reach half the speed of plain TCP.
    prefer(config, "TCP_TX_SEG_SIZE", "1M");
    prefer(config, "TCP_RX_SEG_SIZE", "1M");
    prefer(config, "TCP_TX_BUFS_GROW", "2");
    prefer(config, "TCP_RX_BUFS_GROW", "2");
    if (reach.loopback_only)
        status = ucp_config_modify(config, "NET_DEVICES", "lo");
    if (status == UCS_OK) {
        ucp_params_t params{};
        params.field_mask = UCP_PARAM_FIELD_FEATURES;
        params.features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
        status = ucp_init(&params, config, &context_);
    }
    ucp_config_release(config);
    check(status, "UCX start");

    ucp_worker_params_t params{};
    params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_CLIENT_ID;
    params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
    params.client_id = client_id;
    status = ucp_worker_create(context_, &params, &worker_);
    if (status == UCS_OK) {
        status = ucp_worker_get_efd(worker_, &events_);
        if (status != UCS_OK)
            ucp_worker_destroy(worker_);
    }
    if (status != UCS_OK)
        ucp_cleanup(context_);
    check(status, "UCX worker");
}

Worker::~Worker() {
    ucp_worker_destroy(worker_);
    ucp_cleanup(context_);
}

bool Worker::armed() {
    const ucs_status_t status = ucp_worker_arm(worker_);
    if (status == UCS_ERR_BUSY)
        return false;
    check(status, "UCX wake-up");
    return true;
}

void sleep_on(int events, std::chrono::milliseconds at_most) {
    pollfd waited{events, POLLIN, 0};
    poll(&waited, 1, static_cast<int>(at_most.count()));
}

void *force_close(ucp_ep_h endpoint) {
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    void *request = ucp_ep_close_nbx(endpoint, &param);
    // Anything but a request means that the endpoint is gone: an error here is the one it was closed for.
    return UCS_PTR_IS_PTR(request) ? request : nullptr;
}

}  // namespace ucx
