"""Test the requirements of exact resume for compiled code and for several processes."""

import contextlib
import functools
import os
import socket
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu.runs import joined_alone
from testkit.fake_cache import write_cache
from testkit.tiny_run import HERE, SPAWNED, runtime, settings, task
from training.errors import ConfigError, RunError
from training.model.network import build_model
from training.run import loop
from training.run.checkpoints import load_checkpoint
from training.run.device import configure_device, missing_determinism_explained
from training.run.distributed import join_processes
from training.run.inference import Stopped
from training.run.job import begin, resume
from training.run.loop import train_epoch
from training.run.runs import open_run
from training.run.setup import load_slice_network, make_optimizer, prepare, set_up, start
from training.run.task import Task
from training.run.validation import validate
from training.run.watch import Watch


@pytest.fixture(scope="module")
def cache_path(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c.zarr", patients=10, slices=5).path


@pytest.mark.parametrize("stopped_after", [0, 3])
def test_a_resumed_process_runs_the_same_compiled_code(tmp_path, cache_path, monkeypatch, stopped_after):
    """With dynamic shapes, the second batch size would replace the first's code in processes that have seen both."""
    codes = []

    def note(module, inputs):
        codes.append(module)
        assert all(isinstance(value, torch.Tensor) for value in inputs)  # a dynamic size would be a separate input
        return module.forward

    compile_net = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, **how: compile_net(net, backend=note, **how))
    torch._dynamo.reset()
    run, cache = begin(tmp_path / "run", cache_path, settings(model="squeezenet1_1", batch_size=10, compile=True), HERE)
    setup = set_up(task(run, cache))
    sizes = {setup.schedule.images_in_batch(batch) for batch in range(setup.schedule.batches)}
    assert sizes == {8, 9}
    learner = start(setup)
    learner.progress.batches = stopped_after
    with Watch(setup, learner.progress, setup.schedule.total_steps) as watch:
        train_epoch(setup, learner, watch, lambda: False)
        # For each size, one for the augmentation and one for the network.
        assert len(codes) == 2 * len({setup.schedule.images_in_batch(batch) for batch in range(stopped_after, 4)})
        before = len(codes)
        validate(setup, learner, watch, lambda: False)
        assert len(codes) == before + 1  # validation runs compiled code too


def reached(learner, step):
    return learner.progress.step == step > 0


def stopped_and_resumed(rank, count, port, path, cache_path, stop_at):
    """Act as one of `count` processes: train an epoch, stopped after `stop_at` steps and resumed; 0 does not stop."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    config = settings(model="squeezenet1_1", epochs=1, dropout=0.0)
    with join_processes("cpu") as processes:
        run, cache = begin(path, cache_path, config, processes)
        for stop in [stop_at, 0] if stop_at else [0]:
            setup = set_up(Task(run, cache, runtime(), processes))
            learner = start(setup)
            with Watch(setup, learner.progress, setup.schedule.total_steps) as watch:
                with contextlib.suppress(Stopped):
                    train_epoch(setup, learner, watch, functools.partial(reached, learner, stop))
                loop.save_progress(setup, learner, watch)
            processes.wait()
            run, cache = resume(path, cache_path, {})


def test_four_processes_resumed_within_an_epoch_end_with_the_same_bits(tmp_path, cache_path):
    for name, stop_at in (("undisturbed", 0), ("resumed", 2)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = [(rank, 4, port, tmp_path / name, cache_path, stop_at) for rank in range(4)]
        started = [SPAWNED.Process(target=stopped_and_resumed, args=some) for some in arguments]
        for process in started:
            process.start()
        for process in started:
            process.join()
        assert [process.exitcode for process in started] == [0] * 4
    states = [load_checkpoint(open_run(tmp_path / name)).model for name in ("undisturbed", "resumed")]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_fixing_the_buckets_does_not_compile_anything(tmp_path, cache_path, monkeypatch):
    codes, compile_net = [], torch.compile

    def note(module, inputs):
        codes.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", lambda net, **how: compile_net(net, backend=note, **how))
    torch._dynamo.reset()
    with joined_alone(torch.device("cpu")) as processes:
        run, cache = begin(tmp_path / "run", cache_path, settings(model="squeezenet1_1", compile=True), HERE)
        setup = set_up(Task(run, cache, runtime(), processes))
        model = prepare(setup, start(setup))
        assert not codes
        model(torch.zeros(2, 3, 32, 32), torch.zeros(2))
    assert codes  # shows that compiled code is detected


def test_position_and_head_compute_in_float32_under_autocast():
    net = build_model(settings(model="resnet18", size_px=32), 6).eval()
    net.backbone = torch.nn.Flatten()  # only the head, on unchanged features
    net.fuse = torch.nn.Linear(2 + net.position.out_features, net.fuse.out_features)
    z_norm = torch.linspace(0, 1, 300)
    features = torch.stack([torch.full((300,), 5.0), torch.linspace(5.0, 5.01, 300)], 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = net(features, z_norm)
    assert logits.dtype == torch.float32
    assert len(logits[:, 0].unique()) > 290  # bf16 has only a few values between 0.98 and 1


def test_only_the_weights_of_layers_are_decayed():
    net = build_model(settings(model="vit_b_32", size_px=32), 6)
    decayed, free = ({id(p) for p in group["params"]} for group in make_optimizer(net, settings()).param_groups)
    names = {id(p): name for name, p in net.named_parameters()}
    assert decayed | free == set(names)
    assert {names[p] for p in free} >= {"backbone.class_token", "backbone.encoder.pos_embedding"}
    assert all(names[p].endswith("weight") for p in decayed)
    convnext = build_model(settings(model="convnext_tiny", size_px=32), 6)
    kept = {id(p) for p in make_optimizer(convnext, settings()).param_groups[1]["params"]}
    assert all(id(p) in kept for name, p in convnext.named_parameters() if "layer_scale" in name)


def test_a_nondeterministic_operation_gives_a_one_line_error():
    message = "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set it. You can"
    with (
        pytest.raises(RunError, match="--model vgg11 has an operation that is not deterministic") as error,
        missing_determinism_explained(settings(model="vgg11")),
    ):
        raise RuntimeError(message)
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="other"), missing_determinism_explained(settings()):
        raise RuntimeError("something other")


def test_evaluation_configures_the_device_as_training_does(tmp_path, cache_path, monkeypatch):
    seen, net = [], build_model(settings(), 6)
    monkeypatch.setattr("training.run.setup.configure_device", lambda *of: seen.append(of))
    monkeypatch.setattr("training.run.setup.load_run_weights", lambda *_: net)
    run, cache = begin(tmp_path / "run", cache_path, settings(), HERE)
    set_up(task(run, cache))
    load_slice_network(run, HERE)
    assert seen == [(run.config, HERE.device)] * 2


def test_only_a_deterministic_run_sets_the_flags(monkeypatch):
    cuda, seen = torch.device("cuda"), []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: seen.append(on))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    configure_device(settings(deterministic=True), cuda)
    assert seen == [True]
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # without it PyTorch refuses cuBLAS
    configure_device(settings(), cuda)
    assert seen == [True, False]
    assert torch.backends.cudnn.benchmark


def test_compiled_deterministic_code_is_rejected_if_pytorch_lacks_it(monkeypatch):
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    monkeypatch.setattr("torch._inductor.config", SimpleNamespace(deterministic=False))
    configure_device(settings(deterministic=True, compile=True), torch.device("cuda"))
    assert torch._inductor.config.deterministic
    monkeypatch.setattr("torch._inductor.config", SimpleNamespace())
    with pytest.raises(ConfigError, match="leave --compile out"):
        configure_device(settings(deterministic=True, compile=True), torch.device("cuda"))


@pytest.mark.parametrize(("batch_size", "count"), [(4, 4), (6, 4)])
def test_a_process_without_images_is_rejected_with_a_remedy(tmp_path, cache_path, batch_size, count):
    import dataclasses

    run, cache = begin(tmp_path / "run", cache_path, settings(batch_size=batch_size), HERE)
    with pytest.raises(ConfigError, match=r"--batch-size|--nproc-per-node"):
        set_up(Task(run, cache, runtime(), dataclasses.replace(HERE, count=count)))
    fits = dataclasses.replace(run, config=settings(batch_size=2 * count))
    set_up(Task(fits, cache, runtime(), dataclasses.replace(HERE, count=count)))
