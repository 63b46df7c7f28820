// Python's face of the ucx transport: `Source` and `Link`, blocking, without the interpreter lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <vector>

#include "span.h"
#include "ucx_link.h"
#include "ucx_source.h"

namespace nb = nanobind;

namespace {

// Holds the pool's buffer for as long as peers may read it.
class PoolSource {
public:
    PoolSource(const std::string &host, nb::handle pool) : pool_(std::make_unique<Span>(pool, false)) {
        nb::gil_scoped_release unlocked;
        source_ = std::make_unique<ucx::Source>(
            host, std::vector{ucx::Region{pool_->data(), pool_->size(), UCS_MEMORY_TYPE_HOST}});
    }
    // The table lies in host memory, the blocks at `address` in what `memory` names.
    PoolSource(const std::string &host, nb::handle table, std::uint64_t address, std::uint64_t bytes,
               const std::string &memory, std::uint64_t driver_context)
        : pool_(std::make_unique<Span>(table, false)) {
        nb::gil_scoped_release unlocked;
        source_ = std::make_unique<ucx::Source>(
            host,
            std::vector{ucx::Region{pool_->data(), pool_->size(), UCS_MEMORY_TYPE_HOST},
                        ucx::Region{reinterpret_cast<void *>(address), bytes, ucx::memory_type(memory)}},
            driver_context);
    }

    ucx::Source &source() {
        if (source_ == nullptr)
            throw ucx::Error("closed");
        return *source_;
    }
    std::uint64_t base() const { return base_; }

    void close() {
        {
            nb::gil_scoped_release unlocked;
            source_.reset();
        }
        pool_.reset();
    }

private:
    std::unique_ptr<Span> pool_;
    std::uint64_t base_ = reinterpret_cast<std::uint64_t>(pool_->data());
    std::unique_ptr<ucx::Source> source_;
};

std::unique_ptr<ucx::Link> open_link(const std::string &host, std::uint16_t port, std::uint64_t client_id,
                                     nb::bytes key, double limit_s, nb::bytes block_key, const std::string &memory) {
    std::vector<std::string> keys{std::string(key.c_str(), key.size())};
    if (block_key.size() != 0)
        keys.emplace_back(block_key.c_str(), block_key.size());
    nb::gil_scoped_release unlocked;
    return std::make_unique<ucx::Link>(host, port, client_id, keys, ucx::memory_type(memory),
                                       ucx::Link::Limit(limit_s));
}

void get(ucx::Link &link, nb::handle dest, std::uint64_t address, double limit_s) {
    Span to(dest, true);
    nb::gil_scoped_release unlocked;
    link.get(to.data(), to.size(), address, ucx::Link::Limit(limit_s));
}

std::uint64_t get_granted(ucx::Link &link, nb::handle dest, std::uint64_t address, std::uint64_t generation,
                          double limit_s) {
    Span to(dest, true);
    nb::gil_scoped_release unlocked;
    return link.get_granted(to.data(), to.size(), address, generation, ucx::Link::Limit(limit_s));
}

std::uint64_t get_granted_to(ucx::Link &link, std::uint64_t dest, std::uint64_t bytes, std::uint64_t address,
                             std::uint64_t generation, double limit_s) {
    nb::gil_scoped_release unlocked;
    return link.get_granted(reinterpret_cast<void *>(dest), bytes, address, generation, ucx::Link::Limit(limit_s));
}

nb::bytes packed_key(PoolSource &self, std::size_t region) {
    const std::string &key = self.source().key(region);
    return nb::bytes(key.data(), key.size());
}

}  // namespace

NB_MODULE(_ucx, m) {
    m.doc() = "One-sided reads of a peer's KV pool over libucp.";
    nb::exception<ucx::Error>(m, "UcxError");
    nb::class_<PoolSource>(m, "Source")
        .def(nb::init<const std::string &, nb::handle>(), nb::arg("host"), nb::arg("pool"))
        .def(nb::init<const std::string &, nb::handle, std::uint64_t, std::uint64_t, const std::string &,
                      std::uint64_t>(),
             nb::arg("host"), nb::arg("table"), nb::arg("address"), nb::arg("nbytes"), nb::arg("memory"),
             nb::arg("driver_context"))
        .def_prop_ro("port", [](PoolSource &self) { return self.source().port(); })
        .def_prop_ro("base", &PoolSource::base)
        .def_prop_ro("key", [](PoolSource &self) { return packed_key(self, 0); })
        .def_prop_ro("block_key", [](PoolSource &self) { return packed_key(self, 1); })
        .def_prop_ro("consumers", [](PoolSource &self) { return self.source().consumers(); })
        .def_prop_ro("failure", [](PoolSource &self) { return self.source().failure(); })
        .def("admit", [](PoolSource &self, std::uint64_t id) { self.source().admit(id); }, nb::arg("client_id"))
        .def("revoke", [](PoolSource &self, std::uint64_t id) { self.source().revoke(id); }, nb::arg("client_id"))
        .def("close", &PoolSource::close);
    nb::class_<ucx::Link>(m, "Link")
        .def("get", &get, nb::arg("dest"), nb::arg("address"), nb::arg("limit_s"))
        .def("get_granted", &get_granted, nb::arg("dest"), nb::arg("address"), nb::arg("generation"),
             nb::arg("limit_s"))
        .def("get_granted_to", &get_granted_to, nb::arg("dest"), nb::arg("nbytes"), nb::arg("address"),
             nb::arg("generation"), nb::arg("limit_s"))
        .def("close", &ucx::Link::close, nb::call_guard<nb::gil_scoped_release>());
    m.def("connect", &open_link, nb::arg("host"), nb::arg("port"), nb::arg("client_id"), nb::arg("key"),
          nb::arg("limit_s"), nb::arg("block_key") = nb::bytes("", 0), nb::arg("memory") = "host");
    m.def("supports_cuda", &ucx::supports_cuda, nb::call_guard<nb::gil_scoped_release>());
}
