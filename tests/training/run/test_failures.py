"""Test errors that end a run within a step: a loss that is not finite, and too little memory."""

import dataclasses

import pandas as pd
import pytest
import torch

from testkit.tiny_run import HERE, settings, task, train
from training.errors import RunError
from training.run import loop, step
from training.run.checkpoints import list_checkpoints
from training.run.job import begin
from training.run.setup import set_up, start
from training.run.watch import Watch


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_step_leaves_the_weights_unchanged_and_lists_its_slices(tmp_path, cache_path, monkeypatch, where):
    run, cache = begin(tmp_path / "run", cache_path, settings(), HERE)
    setup = set_up(task(run, cache, log_every=5))
    learner = start(setup)
    seen, before = [], {}
    true_losses = setup.loss

    def poisoned(logits, labels, weights):
        losses = true_losses(logits, labels, weights)
        if len(seen) == 4:
            before.update({name: tensor.clone() for name, tensor in learner.net.named_parameters()})
            if where == "loss":
                return losses * torch.inf
            logits.register_hook(lambda gradient: gradient * torch.nan)
        return losses

    setup = dataclasses.replace(setup, loss=poisoned)
    with Watch(setup, learner.progress, 10) as watch:
        true_saw = watch.record_batch

        def saw(lines, images):
            seen.append(lines.clone())
            true_saw(lines, images)

        monkeypatch.setattr(watch, "record_batch", saw)
        with pytest.raises(RunError, match=r"step 4: .*not finite"):
            loop.train_epoch(setup, learner, watch, lambda: False)
    # It was noticed a step later (the previous check was at the end of the warm-up); neither step changed the weights.
    assert len(seen) == 5
    for name, tensor in learner.net.named_parameters():
        assert torch.equal(tensor, before[name]), name
    table = pd.read_csv(run.path / "nonfinite.csv")
    assert table["image_id"].tolist() == cache.table["image_id"].iloc[seen[3].numpy()].tolist()
    assert not list_checkpoints(run)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmany\nlines"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere"),
    ],
    ids=["PyTorch", "cuDNN", "CUDA"],
)
def test_out_of_memory_says_what_to_set(tmp_path, cache_path, monkeypatch, error):
    def exhausted(*_arguments, **_named):
        raise error

    monkeypatch.setattr(step, "backward", exhausted)
    with pytest.raises(RunError, match=r"batch size of 8 .* --batch-size 4 --set accumulation=2"):
        train(tmp_path / "run", cache_path, settings())
