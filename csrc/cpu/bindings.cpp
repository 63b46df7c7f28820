// engine._native: the C ABI with checked tensors. Arrays are anything that speaks DLPack on the CPU; kernels run without the GIL.
#include "binding_decoder.h"
#include "binding_kernels.h"

using splice::binding::Decoder;
using splice::binding::Experts;
using splice::binding::ISAS;
using splice::binding::isa_name;
using splice::binding::Kernels;
using splice::binding::Latent;
using splice::binding::Matrix;
using splice::binding::PackedLinear;
using splice::binding::Routing;
using splice::binding::Vector;

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels of the engine: see csrc/cpu/splice_cpu.h.";
  m.def("supported_isas", [] {
    nb::list names;
    for (int isa = ISAS - 1; isa >= 0; --isa)
      if (splice_cpu_isa_supported(isa)) names.append(isa_name(isa));
    return names;
  }, "Instruction sets this machine has, best first.");
  nb::class_<PackedLinear>(m, "PackedLinear", "A weight [n, k] re-laid for the kernels.")
      .def(nb::init<int64_t, int64_t, const std::string&>(), nb::arg("n"), nb::arg("k"), nb::arg("dtype"))
      .def("load", &PackedLinear::load, nb::arg("weight"), nb::arg("first") = 0, "Takes rows first, first + 1, ...")
      .def("load_blocks", &PackedLinear::load_blocks, nb::arg("blocks"), nb::arg("dtype"), nb::arg("first") = 0,
           "Takes rows first, first + 1, ... as a GGUF file stores them: uint8 [rows, bytes of a row].")
      .def("rows", &PackedLinear::rows, nb::arg("ids"), nb::arg("out"), "out[i] = row ids[i], float32.")
      .def_prop_ro("n", &PackedLinear::n)
      .def_prop_ro("k", &PackedLinear::k)
      .def_prop_ro("nbytes", &PackedLinear::bytes);
  nb::class_<Kernels>(m, "Kernels", "An instruction set and a pool of threads.")
      .def(nb::init<const std::string&, int>(), nb::arg("isa") = "auto", nb::arg("num_threads") = 1)
      .def_prop_rw("isa", &Kernels::isa, &Kernels::set_isa)
      .def_prop_rw("num_threads", &Kernels::num_threads, &Kernels::set_num_threads)
      .def("linear", &Kernels::linear, nb::arg("out"), nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(),
           nb::arg("int8") = false, nb::arg("bf16") = false,
           "Quantised weights meet activations in int8, all weights activations in bf16, or else in float32.")
      .def("rms_norm", &Kernels::rms_norm, nb::arg("out"), nb::arg("x"), nb::arg("residual").none(), nb::arg("weight"),
           nb::arg("eps"))
      .def("gated_mul", &Kernels::gated_mul, nb::arg("out"), nb::arg("gate_up"), nb::arg("activation") = "silu")
      .def("rope_and_store", &Kernels::rope_and_store, nb::arg("out"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
           nb::arg("positions"), nb::arg("cos_sin"), nb::arg("kv_cache"), nb::arg("layer"), nb::arg("slots"))
      .def("paged_attention", &Kernels::paged_attention, nb::arg("out"), nb::arg("q"), nb::arg("kv_cache"),
           nb::arg("layer"), nb::arg("block_tables"), nb::arg("query_starts"), nb::arg("starts"), nb::arg("scale"),
           nb::arg("window") = 0, nb::arg("softcap") = 0.0f, nb::arg("sinks") = nb::none())
      .def("latent_attention", &Kernels::latent_attention, nb::arg("out"), nb::arg("q"), nb::arg("kv_cache"), nb::arg("layer"),
           nb::arg("block_tables"), nb::arg("query_starts"), nb::arg("starts"), nb::arg("scale"))
      .def("route", &splice::binding::route, nb::arg("experts"), nb::arg("weights"), nb::arg("logits"), nb::arg("routing"));
  nb::class_<Routing>(m, "Routing", "How a router's logits choose experts.")
      .def(nb::init<int64_t, int64_t, const std::string&, bool, float, int64_t, int64_t, const std::string&,
                    const std::optional<Vector>&, const std::optional<Vector>&>(),
           nb::arg("num_experts"), nb::arg("top_k"), nb::arg("scores"), nb::kw_only(), nb::arg("normalise"),
           nb::arg("scale") = 1.0f, nb::arg("num_groups") = 1, nb::arg("top_groups") = 1, nb::arg("group_score") = "max",
           nb::arg("logit_bias") = nb::none(), nb::arg("score_bias") = nb::none());
  nb::class_<Experts>(m, "Experts",
                      "A mixture of experts. Of gate_up and down, the experts' matrices lie one after another in one PackedLinear, "
                      "each on a panel of its own; gate and up may be one PackedLinear each.")
      .def(nb::init<nb::object, nb::object, nb::object, const std::optional<Matrix>&, nb::object, const std::optional<Matrix>&,
                    const std::string&, nb::object, const std::optional<Vector>&, nb::object, const std::optional<Vector>&,
                    const std::string&>(),
           nb::arg("routing"), nb::arg("router"), nb::kw_only(), nb::arg("gate_up"), nb::arg("gate_up_bias").none(),
           nb::arg("down"), nb::arg("down_bias").none(), nb::arg("activation") = "silu",
           nb::arg("shared_gate_up") = nb::none(), nb::arg("shared_gate_up_bias") = nb::none(),
           nb::arg("shared_down") = nb::none(), nb::arg("shared_down_bias") = nb::none(),
           nb::arg("shared_activation") = "silu");
  nb::class_<Latent>(m, "Latent",
                     "Latent attention. Of absorb [heads · rank, still] and expand [heads · value, rank], the heads' matrices lie one "
                     "after another in one float PackedLinear, each on a panel of its own.")
      .def(nb::init<nb::object, const std::optional<Vector>&, const std::optional<Vector>&, nb::object, nb::object,
                    const std::optional<Vector>&, const Vector&, nb::object, nb::object, int64_t, int64_t, int64_t, int64_t, int64_t, float>(),
           nb::kw_only(), nb::arg("q_down").none(), nb::arg("q_down_bias").none(), nb::arg("q_norm").none(), nb::arg("q"),
           nb::arg("kv_down"), nb::arg("kv_down_bias").none(), nb::arg("kv_norm"), nb::arg("absorb"), nb::arg("expand"),
           nb::arg("num_heads"), nb::arg("still"), nb::arg("turning"), nb::arg("rank"), nb::arg("value"), nb::arg("eps"));
  nb::class_<Decoder>(m, "Decoder", "A decoder compiled into one call a step. A weight is a PackedLinear or a tuple of them.")
      .def(nb::init<nb::object, nb::object, nb::object, const Vector&, float, int64_t, int64_t, float, float, bool, bool>(),
           nb::arg("kernels"), nb::arg("embedding"), nb::arg("head"), nb::arg("norm"), nb::kw_only(), nb::arg("eps"),
           nb::arg("num_kv_heads"), nb::arg("head_dim"), nb::arg("embedding_scale") = 1.0f, nb::arg("logit_softcap") = 0.0f,
           nb::arg("int8") = false, nb::arg("bf16") = false)
      .def("add_layer", &Decoder::add_layer, nb::kw_only(), nb::arg("input_norm"), nb::arg("qkv") = nb::none(),
           nb::arg("qkv_bias") = nb::none(), nb::arg("latent") = nb::none(), nb::arg("output"), nb::arg("output_bias").none(),
           nb::arg("mlp_norm"),
           nb::arg("gate_up") = nb::none(), nb::arg("gate_up_bias") = nb::none(), nb::arg("down") = nb::none(),
           nb::arg("down_bias") = nb::none(), nb::arg("experts") = nb::none(), nb::arg("cos_sin"),
           nb::arg("num_heads"), nb::arg("scale"), nb::arg("activation") = "silu", nb::arg("q_norm") = nb::none(),
           nb::arg("k_norm") = nb::none(), nb::arg("sinks") = nb::none(), nb::arg("attention_output_norm") = nb::none(),
           nb::arg("mlp_output_norm") = nb::none(), nb::arg("window") = 0, nb::arg("softcap") = 0.0f)
      .def("step", &Decoder::step, nb::arg("logits"), nb::arg("token_ids"), nb::arg("positions"), nb::arg("slots"),
           nb::arg("block_tables"), nb::arg("query_starts"), nb::arg("starts"), nb::arg("logit_rows"), nb::arg("kv_cache"));
}
