// Compiled once per instruction set: SPLICE_TABLE names the table this unit provides, the flags decide what F16 is made of.
#if !defined(SPLICE_AMX)
#include "attention.h"
#include "elementwise.h"
#include "experts.h"
#include "int8_rows.h"
#include "latent_attention.h"
#include "rope.h"
#endif
#include "kernels.h"
#include "linear.h"

namespace splice::cpu {

#if defined(SPLICE_AMX)

// Tiles are for products; all else is that of the set beneath.
const Kernels& SPLICE_TABLE() {
  static const Kernels table = [] {
    Kernels own = avx512vnni_kernels();
    own.linear = linear;
    own.linear_scratch = linear_scratch;
    return own;
  }();
  return table;
}

#else

const Kernels& SPLICE_TABLE() {
  static constexpr Kernels table{quantize_rows,    linear,        rms_norm,     gated_mul,      cap,
                                 rope_store,       attention,     route,        combine,        latent_attention,
                                 store_latents,    turn_queries,  linear_scratch, attention_scratch, route_scratch,
                                 latent_scratch};
  return table;
}

#endif

}  // namespace splice::cpu
