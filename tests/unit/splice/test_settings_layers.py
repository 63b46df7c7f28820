from __future__ import annotations

from pathlib import Path

import pytest

from splice.settings.commands import RouterCommandSettings, ServeSettings, names_of_all_commands
from splice.settings.parts import pool_settings, router_settings
from splice.settings.resolve import Resolved, resolve
from wire.errors import ErrorCode, SpliceError


def serve(
    flags: dict[str, str] | None = None, environment: dict[str, str] | None = None, config: Path | None = None
) -> Resolved[ServeSettings]:
    return resolve(
        ServeSettings,
        flags=flags or {},
        environment=environment or {},
        config=config,
        known_elsewhere=names_of_all_commands(),
    )


def refused(**layers: object) -> SpliceError:
    with pytest.raises(SpliceError) as caught:
        serve(**layers)  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.BAD_SETTING
    return caught.value


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "splice.yaml"
    config.write_text("port: 1\ngrpc-port: 1\nmax_num_seqs: 1\n")
    resolved = serve({"port": "3"}, {"SPLICE_PORT": "2", "SPLICE_GRPC_PORT": "2"}, config)
    settings = resolved.settings
    assert (settings.port, settings.grpc_port, settings.max_num_seqs, settings.block_size) == (3, 2, 1, 32)
    assert [resolved.origins[name] for name in ("port", "grpc_port", "max_num_seqs", "block_size")] == [
        "--port", "SPLICE_GRPC_PORT", str(config), "default",
    ]  # fmt: skip


def test_an_unknown_key_of_the_file_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    config = tmp_path / "splice.yaml"
    config.write_text("max-num-seq: 3\n")
    assert "did you mean max-num-seqs?" in refused(config=config).message


def test_an_unknown_variable_is_an_error_with_a_suggestion() -> None:
    assert "did you mean SPLICE_KV_TRANSPORT?" in refused(environment={"SPLICE_KV_TRANSPORTS": "shm"}).message


def test_a_setting_of_another_command_may_stand_in_a_shared_environment() -> None:
    assert serve(environment={"SPLICE_ROLE": "prefill"}).settings == ServeSettings()


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("port", "http"), ("port", "70000"), ("port", "-1"), ("decode", "0"), ("kv_cache_memory", "lots"),
        ("kv_cache_memory", "0"), ("kv_transport", "pigeon"), ("kv_transport", "shm,shm"), ("block_size", "31"),
        ("kv_push", "maybe"),
        ("etcd_endpoints", "localhost"), ("etcd_endpoints", "https://h:1"), ("cluster", "a/b"), ("dtype", "int3"),
        ("lease_ttl", "nan"), ("no_worker_grace", "-1"), ("enable_prefix_caching", "maybe"), ("model", ""),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_names_its_setting_and_what_was_expected(name: str, raw: str) -> None:
    error = refused(flags={name: raw})
    assert error.param == name
    assert "expected" in error.message


def test_a_secret_is_not_repeated_in_the_error() -> None:
    assert "that value" in refused(environment={"SPLICE_API_KEY": ""}).message


@pytest.mark.parametrize(("raw", "expected"), [("512M", 512 << 20), ("1.5GiB", 3 << 29), ("1024", 1024), ("2kb", 2048)])
def test_sizes_are_read_in_powers_of_1024(raw: str, expected: int) -> None:
    assert serve({"kv_cache_memory": raw}).settings.kv_cache_memory == expected


def test_a_file_may_give_lists_numbers_and_truth_values(tmp_path: Path) -> None:
    config = tmp_path / "splice.yaml"
    config.write_text("kv-transport: [tcp, shm]\nenable-prefix-caching: false\nlease-ttl: 4\n")
    settings = serve(config=config).settings
    assert (settings.kv_transport, settings.enable_prefix_caching, settings.lease_ttl) == (("tcp", "shm"), False, 4.0)


@pytest.mark.parametrize("content", ["- a\n", "port: {a: 1}\n", "a: [\n"])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    config = tmp_path / "splice.yaml"
    config.write_text(content)
    refused(config=config)


def test_worker_and_router_get_what_the_command_line_said(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    settings = serve({"model": str(model), "block_size": "16", "kv_transport": "tcp", "seed": "7"}).settings
    worker = pool_settings(settings, "prefill", "127.0.0.1", ("h:1",))
    assert (worker.role, worker.block_size, worker.kv_transports, worker.etcd_endpoints) == (
        "prefill", 16, ("tcp",), ("h:1",),
    )  # fmt: skip
    assert (worker.swap_space_bytes, worker.num_host_blocks, worker.kv_push) == (0, None, "auto")
    assert (worker.activations, worker.quantization) == ("auto", "auto")
    narrow = serve({"model": str(model), "activations": "bf16", "quantization": "fp8", "device": "cuda"}).settings
    worker = pool_settings(narrow, "decode", "127.0.0.1", ())
    assert (worker.activations, worker.quantization) == ("bfloat16", "fp8")
    swapping = serve({"model": str(model), "swap_space": "2M", "num_host_blocks": "9", "kv_push": "off"}).settings
    worker = pool_settings(swapping, "decode", "127.0.0.1", ())
    assert (worker.swap_space_bytes, worker.num_host_blocks, worker.kv_push) == (2 << 20, 9, "off")
    router = router_settings(RouterCommandSettings(seed=7, api_key="k", no_worker_grace=2.0))
    assert (router.default_seed, router.api_keys, router.no_worker_grace_s) == (7, ("k",), 2.0)


def test_only_what_computes_prompts_gives_way_and_both_pools_bound_their_steps() -> None:
    settings = serve({"prefill_nice": "7", "max_step_ms": "120", "max_mixed_step_ms": "60"}).settings
    pools = {role: pool_settings(settings, role, "127.0.0.1", ()) for role in ("prefill", "decode")}
    assert {role: pool.nice for role, pool in pools.items()} == {"prefill": 7, "decode": 0}
    assert {(pool.max_step_ms, pool.max_mixed_step_ms) for pool in pools.values()} == {(120.0, 60.0)}
