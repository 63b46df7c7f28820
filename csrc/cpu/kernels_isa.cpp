// Compiled once per instruction set: SPLICE_TABLE names the table this unit provides, the flags decide what F16 is made of.
#include "attention.h"
#include "elementwise.h"
#include "experts.h"
#include "int8_rows.h"
#include "kernels.h"
#include "latent_attention.h"
#include "linear.h"
#include "rope.h"

namespace splice::cpu {

const Kernels& SPLICE_TABLE() {
  static constexpr Kernels table{quantize_rows,    linear,        rms_norm,     gated_mul,      cap,
                                 rope_store,       attention,     route,        combine,        latent_attention,
                                 store_latents,    turn_queries,  linear_scratch, attention_scratch, route_scratch,
                                 latent_scratch};
  return table;
}

}  // namespace splice::cpu
