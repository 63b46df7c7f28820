// The memory behind a Python buffer, held for as long as this object lives.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>

class Span {
public:
    Span(nanobind::handle object, bool writable) {
        if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0)
            throw nanobind::python_error();
    }
    ~Span() { PyBuffer_Release(&view_); }
    Span(const Span &) = delete;
    Span &operator=(const Span &) = delete;

    std::byte *data() const { return static_cast<std::byte *>(view_.buf); }
    std::size_t size() const { return static_cast<std::size_t>(view_.len); }

private:
    Py_buffer view_{};
};
