// Python's face of the ucx transport: `Source` and `Link`, blocking, without the interpreter lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>

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
        source_ = std::make_unique<ucx::Source>(host, pool_->data(), pool_->size());
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
                                     nb::bytes key, double limit_s) {
    const std::string packed(key.c_str(), key.size());
    nb::gil_scoped_release unlocked;
    return std::make_unique<ucx::Link>(host, port, client_id, packed, ucx::Link::Limit(limit_s));
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

}  // namespace

NB_MODULE(_ucx, m) {
    m.doc() = "One-sided reads of a peer's KV pool over libucp.";
    nb::exception<ucx::Error>(m, "UcxError");
    nb::class_<PoolSource>(m, "Source")
        .def(nb::init<const std::string &, nb::handle>(), nb::arg("host"), nb::arg("pool"))
        .def_prop_ro("port", [](PoolSource &self) { return self.source().port(); })
        .def_prop_ro("base", &PoolSource::base)
        .def_prop_ro("key",
                     [](PoolSource &self) { return nb::bytes(self.source().key().data(), self.source().key().size()); })
        .def_prop_ro("consumers", [](PoolSource &self) { return self.source().consumers(); })
        .def_prop_ro("failure", [](PoolSource &self) { return self.source().failure(); })
        .def("admit", [](PoolSource &self, std::uint64_t id) { self.source().admit(id); }, nb::arg("client_id"))
        .def("revoke", [](PoolSource &self, std::uint64_t id) { self.source().revoke(id); }, nb::arg("client_id"))
        .def("close", &PoolSource::close);
    nb::class_<ucx::Link>(m, "Link")
        .def("get", &get, nb::arg("dest"), nb::arg("address"), nb::arg("limit_s"))
        .def("get_granted", &get_granted, nb::arg("dest"), nb::arg("address"), nb::arg("generation"), nb::arg("limit_s"))
        .def("close", &ucx::Link::close, nb::call_guard<nb::gil_scoped_release>());
    m.def("connect", &open_link, nb::arg("host"), nb::arg("port"), nb::arg("client_id"), nb::arg("key"),
          nb::arg("limit_s"));
}
