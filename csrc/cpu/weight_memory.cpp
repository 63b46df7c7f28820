#include "weight_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <mutex>

namespace splice::cpu {

namespace {

constexpr size_t HUGE_PAGE = size_t{2} << 20;
constexpr size_t CHUNK = 16 * HUGE_PAGE;  // address space: pages are taken as they are touched

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// A mapping that begins at a huge page, given out from its start.
class Chunk {
 public:
  explicit Chunk(size_t bytes) : size_(rounded(bytes, HUGE_PAGE)) {
    void* mapped = mmap(nullptr, size_ + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return;
    mapped_ = mapped;
    base_ = reinterpret_cast<uint8_t*>(rounded(reinterpret_cast<uintptr_t>(mapped), HUGE_PAGE));
    madvise(base_, size_, MADV_HUGEPAGE);  // a kernel that refuses gives small pages: slower, as right
  }
  ~Chunk() {
    if (mapped_) munmap(mapped_, size_ + HUGE_PAGE);
  }
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;

  // Null when it is full. What was given out is never given out again, so it is still as zero as it was mapped.
  void* take(size_t bytes) {
    if (!base_ || size_ - used_ < bytes) return nullptr;
    void* piece = base_ + used_;
    used_ += rounded(bytes, 64);
    if (used_ > size_) used_ = size_;
    return piece;
  }

 private:
  void* mapped_ = nullptr;
  uint8_t* base_ = nullptr;
  size_t size_, used_ = 0;
};

}  // namespace

std::shared_ptr<void> weight_memory(size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Chunk> open;
  const std::lock_guard lock(mutex);
  std::shared_ptr<Chunk> chunk = open.lock();
  void* piece = chunk ? chunk->take(bytes) : nullptr;
  if (!piece) {
    chunk = std::make_shared<Chunk>(bytes > CHUNK ? bytes : CHUNK);
    piece = chunk->take(bytes);
    if (!piece) return nullptr;
    open = chunk;
  }
  return {chunk, piece};
}

}  // namespace splice::cpu
