// A KV pool is shared with peers that map it read-only and copy from it while its owner goes on. The generation of
// a block works as a sequence lock (Boehm, "Can seqlocks get along with programming language memory models?",
// MSPC 2012): the owner bumps, fences, then overwrites; a reader copies, fences, then compares. A reader that finds
// the granted generation after its copy has read exactly what was granted; any other value means discard.
#include <nanobind/nanobind.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "span.h"

namespace nb = nanobind;

namespace {

static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free,
              "generations are shared between processes: a lock would be private to one");

std::atomic_ref<std::uint64_t> generation_of(const Span &table, std::size_t block) {
    if (block >= table.size() / sizeof(std::uint64_t))
        throw nb::index_error("block id outside the pool");
    return std::atomic_ref<std::uint64_t>(reinterpret_cast<std::uint64_t *>(table.data())[block]);
}

std::uint64_t load_generation(nb::handle table, std::size_t block) {
    Span span(table, false);
    return generation_of(span, block).load(std::memory_order_acquire);
}

// After this returns, every reader that sees a later write to the block also sees the new generation.
std::uint64_t bump_generation(nb::handle table, std::size_t block) {
    Span span(table, true);
    const std::uint64_t next = generation_of(span, block).fetch_add(1, std::memory_order_seq_cst) + 1;
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return next;
}

void copy(nb::handle dest, nb::handle source) {
    Span to(dest, true), from(source, false);
    if (to.size() != from.size())
        throw nb::value_error("destination and source differ in size");
    nb::gil_scoped_release unlocked;
    std::memcpy(to.data(), from.data(), to.size());
}

// Copies unless the block was already reused; returns the generation seen after the last byte was read.
std::uint64_t copy_granted(nb::handle dest, nb::handle source, nb::handle table, std::size_t block,
                           std::uint64_t granted) {
    Span to(dest, true), from(source, false), generations(table, false);
    if (to.size() != from.size())
        throw nb::value_error("destination and source differ in size");
    auto generation = generation_of(generations, block);
    nb::gil_scoped_release unlocked;
    const std::uint64_t before = generation.load(std::memory_order_acquire);
    if (before != granted)
        return before;
    std::memcpy(to.data(), from.data(), to.size());
    std::atomic_thread_fence(std::memory_order_acquire);
    return generation.load(std::memory_order_relaxed);
}

// Maps every page of memory that nobody else writes to yet, so that no later access faults.
void map_pages(nb::handle memory) {
    Span span(memory, true);
    nb::gil_scoped_release unlocked;
#ifdef MADV_POPULATE_WRITE
    if (madvise(span.data(), span.size(), MADV_POPULATE_WRITE) == 0)
        return;
#endif
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));  // Linux before 5.14, or its headers
    volatile auto *bytes = reinterpret_cast<volatile unsigned char *>(span.data());
    for (std::size_t at = 0; at < span.size(); at += page)
        bytes[at] = bytes[at];
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Generations as atomics shared between processes, and copies without the interpreter lock.";
    m.def("load_generation", &load_generation, nb::arg("table"), nb::arg("block"));
    m.def("bump_generation", &bump_generation, nb::arg("table"), nb::arg("block"));
    m.def("copy", &copy, nb::arg("dest"), nb::arg("source"));
    m.def("copy_granted", &copy_granted, nb::arg("dest"), nb::arg("source"), nb::arg("table"), nb::arg("block"),
          nb::arg("granted"));
    m.def("map_pages", &map_pages, nb::arg("memory"));
}
