"""Every key of DeepSpeed's configuration and what becomes of it here: used, accepted, silenced or refused.

The tables follow DeepSpeed 0.19 (`runtime/config.py`, `runtime/zero/config.py`, `runtime/precision_config.py`,
`runtime/activation_checkpointing/config.py`), with the keys that it removed on the way there. Optimizers and
schedulers are in `parivox.deepspeed_recipes`; `parivox.deepspeed_config` reads all of them.
"""

from __future__ import annotations

from parivox.deepspeed_values import (
    COUNT,
    NATURAL,
    RATE,
    Check,
    Key,
    accepted,
    anything,
    boolean,
    dtype,
    number,
    refused,
    silenced,
    texts,
    used,
    whole,
)

OFF_SECTION = "leave the section out"


def _silent_section(note: str, **checks: Check) -> Key:
    return Key("silenced", table=silenced(note, **checks), note=note)


def _removed(what: str, remedy: str = OFF_SECTION) -> str:
    return f"DeepSpeed has removed {what}, and the JAX backend never had it; {remedy}"


# --- sections -------------------------------------------------------------------------------------------------

FP16 = {
    "enabled": used(boolean, False),
    "loss_scale": used(RATE, 0.0),
    "initial_scale_power": used(whole(0, 127), 16),
    "loss_scale_window": used(COUNT, 1000),
    "hysteresis": used(COUNT, 2),
    "consecutive_hysteresis": used(boolean, False),
    "min_loss_scale": used(COUNT, 1),
    "auto_cast": refused("sound stays float32 up to the network; remove it or set it to false", False),
    "fp16_master_weights_and_grads": refused(
        "master weights are float32; remove it or set it to false", False
    ),
}

BF16 = {
    "enabled": used(boolean, False),
    **accepted("it moves work within a step", immediate_grad_update=boolean),
    "check_grad_overflow": refused(
        "an update that is not finite is never made here; remove it or set it to true", True
    ),
    "bf16_master_weights_and_grads": refused(
        "master weights are float32; remove it or set it to false", False
    ),
    "bf16_optimizer_states": refused("moments are float32; remove it or set it to false", False),
}

_MEMORY = "it arranges activations in memory and changes no result"
ACTIVATION = {
    **accepted(
        _MEMORY,
        partition_activations=boolean,
        contiguous_memory_optimization=boolean,
        synchronize_checkpoint_boundary=boolean,
        profile=boolean,
    ),
    "number_checkpoints": Key("accepted", COUNT, note=_MEMORY, nullable=True),
    "cpu_checkpointing": refused(
        "JAX keeps checkpoints of activations on the device; set it to false", False
    ),
}

ZERO_ALIASES = {
    name.removeprefix("stage3_"): name
    for name in (
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_model_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_module_granularity_threshold",
        "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential",
    )
}
"""Short name of a ZeRO key -> the name it is usually written with; DeepSpeed takes either."""

_OFFLOAD = "offload has no equal in JAX; remove it, or set its device to 'none'"
_NO_OFFLOAD = "offload has no equal in JAX; remove it or set it to false"
_QUANTIZED = "quantised communication changes the result and has no equal in JAX; set it to false"
_MICS = _removed("MiCS", "remove it")
_KNOB = "it changes the speed and memory of ZeRO on torch, not its result; JAX arranges this by itself"
_SAVING = "Parivox writes its own checkpoints"
_ZERO_KNOBS = {
    **dict.fromkeys(("reduce_bucket_size",), whole(1)),
    **dict.fromkeys(("contiguous_gradients", "reduce_scatter", "use_multi_rank_bucket_allreduce"), boolean),
    **dict.fromkeys(("allgather_partitions", "round_robin_gradients"), boolean),
    **dict.fromkeys(("parameter_alignment", "memory_efficient_linear", "override_module_apply"), boolean),
    **dict.fromkeys(("log_trace_cache_warnings", "enable_sanity_checks"), boolean),
    **dict.fromkeys(("ignore_unused_parameters", "save_muon_momentum_buffer_in_memory"), boolean),
    **dict.fromkeys(("allgather_bucket_size", "sub_group_size"), NATURAL),
    **dict.fromkeys(("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"), NATURAL),
    **dict.fromkeys(("stage3_model_persistence_threshold", "stage3_max_live_parameters"), NATURAL),
    **dict.fromkeys(("stage3_max_reuse_distance", "stage3_module_granularity_threshold"), NATURAL),
    **dict.fromkeys(("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"), boolean),
}

ZERO = {
    "stage": used(whole(0, 3), 0),
    **accepted(_KNOB, **_ZERO_KNOBS),
    **silenced(
        _SAVING,
        stage3_gather_16bit_weights_on_model_save=boolean,
        stage3_gather_fp16_weights_on_model_save=boolean,
        load_from_fp32_weights=boolean,
        elastic_checkpoint=boolean,
        pipeline_loading_checkpoint=boolean,
    ),
    "overlap_comm": Key("accepted", boolean, note=_KNOB, nullable=True),
    "leaf_module": Key(
        "accepted", table=accepted(_KNOB, classes=texts, names=texts, name_suffixes=texts), note=_KNOB
    ),
    "compute_grad_norm": refused("training reports the norm of every update; set it to true", True),
    "legacy_stage1": refused("DeepSpeed has removed it; set it to false", False),
    "offload_param": refused(_OFFLOAD, switch=("device", "none")),
    "offload_optimizer": refused(_OFFLOAD, switch=("device", "none")),
    **dict.fromkeys(
        ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"), refused(_NO_OFFLOAD, False)
    ),
    **dict.fromkeys(("zero_quantized_weights", "zero_quantized_gradients"), refused(_QUANTIZED, False)),
    "zero_quantized_nontrainable_weights": refused(_QUANTIZED, False),
    "zero_hpz_partition_size": refused("a second partition has no equal in JAX; set it to 1", 0, 1),
    "zenflow": refused("ZenFlow is part of offload, which has no equal in JAX; remove it"),
    "mics_shard_size": refused(_MICS, -1),
    "mics_hierarchical_params_gather": refused(_MICS, False),
    "zeropp_loco_param": refused("DeepSpeed has removed LoCo; remove it"),
}

DATA_TYPES = {
    "grad_accum_dtype": used(dtype, nullable=True),
    "param_dtype": refused("'fp16' and 'bf16' choose the dtype of the parameters; remove it"),
    "buffer_dtype": refused("buffers keep their own dtype; remove it"),
    "keep_in_fp32_modules": refused("it needs a model of transformers; remove it or write 'auto'"),
}

# --- the top level --------------------------------------------------------------------------------------------

_LOG = "Parivox prints its own progress, and writes metrics.jsonl and TensorBoard files"
_STREAM = "Parivox reads its own endless stream, which has no last batch"
_AIO = "it belongs to offload to NVMe, which is not supported, and does nothing without it"

TYPED = {
    "type": used(anything),
    "params": used(anything, nullable=True),
    "legacy_fusion": refused("it is an older path of Apex; remove it or set it to false", False),
}
"""Keys of `optimizer` and `scheduler`."""

TOP: dict[str, Key] = {
    **dict.fromkeys(("train_batch_size", "gradient_accumulation_steps"), used(COUNT, nullable=True)),
    "train_micro_batch_size_per_gpu": used(COUNT, nullable=True),
    "gradient_clipping": used(RATE, 1.0),
    "prescale_gradients": used(boolean, False),
    "gradient_predivide_factor": used(number(0.0, above=True), 1.0),
    "communication_data_type": used(dtype, nullable=True),
    "zero_allow_untested_optimizer": used(boolean, False),
    "optimizer": used(anything),
    "scheduler": used(anything),
    "fp16": Key("used", table=FP16),
    "bf16": Key("used", table=BF16),
    "zero_optimization": Key("used", table=ZERO),
    "activation_checkpointing": Key("used", table=ACTIVATION),
    "data_types": Key("used", table=DATA_TYPES),
    **accepted(
        "it changes the speed of torch, not its result", disable_allgather=boolean, disable_python_gc=boolean
    ),
    **silenced("it speaks of offload, which is not supported", zero_force_ds_cpu_optimizer=boolean),
    **silenced("it only warns about the width of an embedding, and there is none", vocabulary_size=NATURAL),
    **silenced("it is the bucket size of an old form of ZeRO", allgather_size=NATURAL),
    **silenced("nothing is split along a sequence here", seq_parallel_communication_data_type=anything),
    **silenced(_LOG, steps_per_print=NATURAL, wall_clock_breakdown=boolean, memory_breakdown=boolean),
    **silenced(_LOG, dump_state=boolean, log_level=anything),
    **silenced(_STREAM, dataloader_drop_last=boolean),
    "tensorboard": _silent_section(_LOG, enabled=boolean, output_path=anything, job_name=anything),
    "csv_monitor": _silent_section(_LOG, enabled=boolean, output_path=anything, job_name=anything),
    "wandb": _silent_section(_LOG, enabled=boolean, group=anything, team=anything, project=anything),
    "comet": _silent_section(
        _LOG,
        enabled=boolean,
        samples_log_interval=anything,
        project=anything,
        workspace=anything,
        api_key=anything,
        experiment_name=anything,
        experiment_key=anything,
        online=anything,
        mode=anything,
    ),
    "flops_profiler": _silent_section(
        _LOG,
        enabled=boolean,
        recompute_fwd_factor=anything,
        profile_step=anything,
        module_depth=anything,
        top_modules=anything,
        detailed=anything,
        output_file=anything,
    ),
    "comms_logger": _silent_section(
        _LOG, enabled=boolean, verbose=boolean, prof_all=boolean, debug=boolean, prof_ops=anything
    ),
    "timers": Key(
        "silenced",
        table={"throughput": _silent_section(_LOG, enabled=boolean, synchronized=boolean)},
        note=_LOG,
    ),
    "aio": _silent_section(
        _AIO,
        block_size=NATURAL,
        queue_depth=NATURAL,
        thread_count=NATURAL,
        intra_op_parallelism=NATURAL,
        single_submit=boolean,
        overlap_events=boolean,
        use_gds=boolean,
    ),
    "checkpoint": Key(
        "silenced",
        note=_SAVING,
        table={
            **silenced(_SAVING, tag_validation=anything, use_node_local_storage=boolean, writer=anything),
            **silenced(_SAVING, parallel_write=anything, checkpoint_serialization=anything),
            "load_universal": refused("Parivox goes on from its own checkpoints; set it to false", False),
        },
    ),
    "gradient_allreduce_op": refused(
        "gradients are averaged over the ranks; remove it or write 'mean'", "mean"
    ),
    "max_grad_norm": refused("DeepSpeed's key is 'gradient_clipping'; write that"),
    "managed_gradient_accumulation": refused("the engine counts micro batches; set it to true", True),
    "sparse_gradients": refused("there are no sparse gradients; remove it or set it to false", False),
    "use_data_before_expert_parallelism": refused("there are no experts; remove it", False),
    "sequence_parallel_size": refused("sound is not split along time; set it to 1", 1),
    "graph_harvesting": refused(_removed("graph harvesting", "remove it"), False),
    "datastates_ckpt": refused(f"{_SAVING}; remove it", False),
    "torch_autocast": refused("use 'bf16' or 'fp16' instead", switch=("enabled", False)),
    "amp": refused(f"{_removed('Apex')}, use 'bf16' or 'fp16'", False, switch=("enabled", False)),
    "curriculum_learning": refused(_removed("it"), switch=("enabled", False)),
    "data_efficiency": refused(f"Parivox orders its own stream; {OFF_SECTION}", switch=("enabled", False)),
    "progressive_layer_drop": refused(_removed("it"), switch=("enabled", False)),
    "eigenvalue": refused(_removed("it"), switch=("enabled", False)),
    "elasticity": refused(
        "DeepSpeed has removed it; write the batch sizes, and resume with other devices",
        switch=("enabled", False),
    ),
    "quantize_training": refused(_removed("it"), switch=("enabled", False)),
    "compression_training": refused(_removed("it")),
    "weight_quantization": refused(
        f"weights are not quantised here; {OFF_SECTION}", switch=("enabled", False)
    ),
    "sparse_attention": refused(_removed("it")),
    "nebula": refused(f"{_SAVING}; {OFF_SECTION}", switch=("enabled", False)),
    "autotuning": refused(f"it searches for a config, not trains; {OFF_SECTION}", switch=("enabled", False)),
    "hybrid_engine": refused(f"it is for text generation; {OFF_SECTION}", switch=("enabled", False)),
    "compile": refused(
        f"both backends compile in their own way; {OFF_SECTION}", switch=("deepcompile", False)
    ),
    "pipeline": refused(f"the model is not cut into pipeline stages; {OFF_SECTION}"),
    "tensor_parallel": refused(
        f"the model is not cut within layers; {OFF_SECTION}", switch=("autotp_size", 0)
    ),
    "expert_parallel": refused(f"there are no experts; {OFF_SECTION}", switch=("enabled", False)),
    "moe": refused(f"there are no experts; {OFF_SECTION}", switch=("enabled", False)),
}
"""Every key at the top level; optimizer and scheduler have tables of their own."""
