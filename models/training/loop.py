"""The one training loop, for continued pre-training and for fine-tuning. torch from the first line: import it late.

Accelerate carries it to one or more CPUs or GPUs. What is ours is what must be exact: the order of the data (a cursor
of two integers), the packing, the targets, and the sum over targets that makes two processes equal to one with twice
the accumulation. A run ends after `steps`, never by the clock, so equal seeds give equal weights.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor

from models.corpus.examples import Examples
from models.corpus.item_examples import ItemExamples
from models.language.item_model import ItemModel
from models.language.model import pick_device, use_threads
from models.training.average import Average
from models.training.block_attention import block_attention
from models.training.checkpoint import Checkpoint, identify
from models.training.dropout import dropout
from models.training.item_batches import ItemBatch, ItemRows
from models.training.item_loss import ItemLoss
from models.training.orbit import EVERY, Orbit
from models.training.packing import Batch, Cursor, LoopParams, Rows
from models.training.peak import Flops, measure_peak
from models.training.progress import Progress
from models.training.shards import placed, whole
from models.training.target_loss import TargetLoss
from plumline.artifact import write_json
from plumline.crash import crash_point
from plumline.errors import InputError, PlumlineError
from plumline.settings import get_settings, this_process
from plumline.stage import hash_seed, say


def write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    """metrics.json, and the loss curve as rows in loss.json, the shape that `dvc plots` draws."""
    write_json(out / "metrics.json", {name: value for name, value in metrics.items() if name != "loss_curve"})
    write_json(out / "loss.json", [{"step": step, "loss": loss} for step, loss in metrics["loss_curve"]])


def train(
    model: Any,
    examples: Examples | ItemExamples,
    params: LoopParams,
    *,
    chosen: np.ndarray,
    steps: int,
    seed: int,
    stage: str,
    progress_path: Path,
    checkpoint: Path | None = None,
    anchor: Path | None = None,
) -> dict[str, Any]:
    """Train a causal LM, or an ItemModel on ItemExamples, in place and return the metrics, which hold no clock.

    chosen: rows of the examples that take part. stage: noun for messages and crash points. progress_path: JSON lines
    with step, loss, tokens/s and seconds. checkpoint: folder for the state every `checkpoint_every` steps; one of the
    same training is gone on from, to the same bits, so that weights and metrics are those of a run never killed.
    anchor: folder of safetensors whose distance is told, and held below `orbit_distance` (models/training/orbit.py).

    Raises PlumlineError with step and example ids if the loss is not finite (the last checkpoint stays), InputError if
    the checkpoint is of this training under other parameters.
    """
    accelerator = _accelerator(params)
    _share_threads()  # after Accelerate, which sets a number of its own
    if params.accumulation % accelerator.num_processes:
        raise InputError(
            f"{stage}.loop.accumulation {params.accumulation} is no multiple of the {accelerator.num_processes} "
            "processes; raise it, or set PLUMLINE_PROCESSES to a divisor"
        )
    if params.orbit_distance is not None and anchor is None:
        raise InputError(f"{stage}.loop.orbit_distance {params.orbit_distance}: {stage} has no anchor; set it to null")
    rows: Rows | ItemRows
    if isinstance(examples, ItemExamples):
        rows = ItemRows(examples, chosen, params.row_tokens, seed, pad=model.pad)
    else:
        rows = Rows(examples, chosen, params.row_tokens, seed, pad=_pad(model))
    kept = None
    if checkpoint is not None and params.checkpoint_every:
        kept = Checkpoint(
            checkpoint,
            stage=stage,
            key=identify(model, examples, chosen, seed, stage, anchor),
            told=_told(params, steps, accelerator),
            say=say if accelerator.is_main_process else lambda _: None,
        )
    # FSDP takes a model apart for good: it gets a copy, and the model the weights in the end.
    trained = copy.deepcopy(model) if params.fsdp else model
    with _exact(accelerator.device), _dressed(trained, params, accelerator.device):
        loop = _Loop(trained, rows, params, accelerator, steps, seed, stage, anchor)
        loop.run(progress_path, kept)
        loop.leave(model)
    model.eval()
    return loop.metrics()


def _share_threads() -> None:
    """The threads of the settings; where those say "half of the cores", the processes of a machine share them."""
    threads = use_threads()
    if not get_settings().threads:
        torch.set_num_threads(max(1, threads // this_process().on_machine))


def _told(params: LoopParams, steps: int, accelerator: Accelerator) -> dict[str, Any]:
    """What decides the bits of a training, by the name under which a person sets it."""
    loop = params.model_dump(mode="json", exclude={"checkpoint_every"})
    told = {"steps": steps, **{f"loop.{name}": value for name, value in loop.items()}}
    told |= {"PLUMLINE_PROCESSES": accelerator.num_processes, "PLUMLINE_DEVICE": accelerator.device.type}
    if accelerator.device.type == "cpu":
        told["PLUMLINE_THREADS"] = torch.get_num_threads()
    return told


def _accelerator(params: LoopParams) -> Accelerator:
    on_cpu = pick_device().type == "cpu"
    if not params.fsdp:
        return Accelerator(cpu=on_cpu, mixed_precision=params.precision)
    if on_cpu:
        raise InputError("loop.fsdp is true on a CPU, where nothing would be sharded; set it to false")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    return Accelerator(mixed_precision=params.precision, fsdp_plugin=plugin)


@contextmanager
def _dressed(model: Any, params: LoopParams, device: torch.device) -> Iterator[None]:
    """Training mode, and what is put on a model for the time of it."""
    with ExitStack() as put_on:
        put_on.enter_context(dropout(model, params.dropout))
        put_on.callback(model.eval)
        model.train()
        if params.gradient_checkpointing:
            lm = model.lm if isinstance(model, ItemModel) else model
            new = hasattr(lm, "activation_checkpointing_enable")  # the name in newer ones of transformers 5
            kind = "activation" if new else "gradient"
            told = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
            getattr(lm, f"{kind}_checkpointing_enable")(**told)
            lm.disable_input_require_grads()  # a hook for frozen embeddings, which would stay for good
            put_on.callback(getattr(lm, f"{kind}_checkpointing_disable"))
        if device.type == "cpu" and not params.compile:  # other blocks in each batch: each would be compiled anew
            put_on.enter_context(block_attention(model.lm if isinstance(model, ItemModel) else model))
        if params.compile:
            model.base_model.compile(dynamic=True)  # rows differ in width
            put_on.callback(setattr, model.base_model, "_compiled_call_impl", None)
        yield


@dataclass
class _Tally:
    """Where a run stands: what a checkpoint must know besides tensors. recent: losses since the curve's last point."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    tokens: int = 0
    targets: int = 0
    places: int = 0
    flops: int = 0
    recent: list[float] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)
    distance: float | None = None
    averagings: int = 0


class _Loop:
    def __init__(
        self,
        model: Any,
        rows: Rows | ItemRows,
        params: LoopParams,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        stage: str,
        anchor: Path | None,
    ) -> None:
        self.params, self.rows, self.steps, self.stage, self.accelerator = params, rows, steps, stage, accelerator
        self.seed = seed
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.flops = Flops.of(model)
        self.adam = torch.optim.AdamW(_groups(model, params), lr=params.learning_rate, betas=params.betas, fused=True)
        loss = ItemLoss(model) if isinstance(rows, ItemRows) else TargetLoss(model)
        self.module, self.optimizer = accelerator.prepare(loss, self.adam)
        self.rates = [group["lr"] for group in self.adam.param_groups]
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = Average(self.parameters, params.average_decay) if params.average_decay else None
        # a new head has nothing to be compared with
        self.anchored = model.anchored() if isinstance(rows, ItemRows) else self.parameters
        self.orbit = Orbit(anchor, self.anchored, params.orbit_distance) if anchor is not None else None
        self.tally = _Tally()

    def leave(self, model: Any) -> None:
        """Give the model what it shall hold after the training."""
        if self.average is not None:
            self.average.copy_to(self.parameters)
            self._hold()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if self.parameters.get(name, parameter) is not parameter:
                    parameter.copy_(whole(self.parameters[name]))

    def run(self, progress_path: Path, checkpoint: Checkpoint | None) -> None:
        self.checkpoint, tally, every = checkpoint, self.tally, self.params.checkpoint_every
        seconds_before = self._resume(checkpoint) if checkpoint is not None else 0.0
        mine = progress_path if self.accelerator.is_main_process else None
        with Progress(mine, self.stage, self.steps, self._peak(), (tally.step, seconds_before)) as progress:
            while tally.step < self.steps:
                tally.step += 1
                batches = self._next_batches()
                targets = sum(batch.num_targets for batch in batches)
                tally.recent.append(self._step(batches, targets))
                tally.tokens += sum(batch.num_tokens for batch in batches)
                tally.places += sum(batch.num_places for batch in batches)
                tally.targets += targets
                tally.flops += sum(self.flops.needed(b.num_tokens, b.num_targets, b.num_seen) for b in batches)
                self._tell(progress)
                ends = tally.step == self.steps and tally.step > every  # what is left is quick, but a seal may fail
                if checkpoint is not None and (tally.step % every == 0 or ends):
                    self._save(checkpoint, progress.seconds)
                crash_point(self.stage, "step")

    def metrics(self) -> dict[str, Any]:
        """What was trained on and what came of it."""
        tally = self.tally
        metrics = {
            "final_loss": tally.curve[-1][1] if tally.curve else None,
            "loss_curve": tally.curve,
            "steps": self.steps,
            "tokens": tally.tokens,
            "target_tokens": tally.targets,
            "padding_share": round(1 - tally.tokens / tally.places, 6) if tally.places else 0.0,
            "flops": tally.flops,
            "parameters": self.num_parameters,
            "examples": len(self.rows.chosen),
            "cursor": [tally.cursor.epoch, tally.cursor.row],
        }
        return metrics | self._orbit()

    def _orbit(self) -> dict[str, Any]:
        if self.orbit is None or self.tally.distance is None:
            return {}
        return {"anchor_distance": round(self.tally.distance, 6), "averagings": self.tally.averagings}

    def _peak(self) -> float:
        """Operations a second of all devices."""
        accelerator = self.accelerator
        if not (accelerator.is_main_process and self.steps):
            return math.inf
        one = measure_peak(str(accelerator.device), self.params.precision, torch.get_num_threads())
        return one * accelerator.num_processes

    def _tell(self, progress: Progress) -> None:
        tally = self.tally
        progress.show(tally.recent[-1], tally.tokens)
        if tally.step % self.params.log_every == 0 or tally.step == self.steps:
            loss = round(sum(tally.recent) / len(tally.recent), 6)
            tally.curve.append([tally.step, loss])
            tally.recent = []
            progress.write(tally.step, loss=loss, tokens=tally.tokens, flops=tally.flops, **self._orbit())

    def _resume(self, checkpoint: Checkpoint) -> float:
        """Go back to what a checkpoint holds, if there is one of this training; returns the seconds it took till then.

        Every process reads the file; none deletes it before all have.
        """
        found = checkpoint.find()
        self.accelerator.wait_for_everyone()
        if found is None:
            if self.accelerator.is_main_process:
                checkpoint.discard()
            return 0.0
        told = dict(found.notes)
        seconds = float(told.pop("seconds"))
        told["cursor"] = Cursor(**told["cursor"])
        self.tally.__dict__.update(told)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(placed(found.tensors[f"weights/{name}"], parameter))
                self.adam.state[parameter] = {
                    "step": found.tensors[f"adam_step/{name}"].to(parameter.device),
                    **{m: placed(found.tensors[f"{m}/{name}"], parameter) for m in ("exp_avg", "exp_avg_sq")},
                }
                if self.average is not None:
                    self.average.values[name] = placed(found.tensors[f"average/{name}"], parameter)
        return seconds

    def _save(self, checkpoint: Checkpoint, seconds: float) -> None:
        tensors: dict[str, Tensor] = {}
        if self.params.fsdp or self.accelerator.is_main_process:
            for name, parameter in self.parameters.items():
                state = self.adam.state[parameter]
                parts = {"weights": parameter, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
                parts["adam_step"] = state["step"]
                if self.average is not None:
                    parts["average"] = self.average.values[name]
                for part, value in parts.items():
                    gathered = whole(value.detach())  # by all processes together; one keeps it
                    if self.accelerator.is_main_process:
                        tensors[f"{part}/{name}"] = gathered.cpu()
        if self.accelerator.is_main_process:
            checkpoint.save(tensors, {**asdict(self.tally), "seconds": seconds})
        self.accelerator.wait_for_everyone()

    def _next_batches(self) -> list[Batch | ItemBatch]:
        """The forward passes of one step, of all processes together."""
        taken, self.tally.cursor = self.rows.take(self.tally.cursor, self.params.rows * self.params.accumulation)
        return [self.rows.batch(taken[i : i + self.params.rows]) for i in range(0, len(taken), self.params.rows)]

    def _step(self, batches: Sequence[Batch | ItemBatch], targets: int) -> float:
        """One optimizer step; returns the mean loss of its targets."""
        accelerator, params, step = self.accelerator, self.params, self.tally.step
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self._rate(step)
        mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
        total = torch.zeros((), device=accelerator.device)
        for number in mine:
            batch = batches[number]
            # Dropout follows from the place, like the data: nothing to remember, the same for any number of processes.
            torch.manual_seed(hash_seed(self.seed, "pass", step, number))
            with nullcontext() if number == mine[-1] else accelerator.no_sync(self.module):
                arrays = (torch.from_numpy(array).to(accelerator.device) for array in batch.arrays)
                loss = self.module(*arrays) / max(targets, 1)
                # Processes average their gradients; the factor makes that the mean over the targets of all of them.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        norm = float(whole(accelerator.clip_grad_norm_(self.module.parameters(), params.clip_norm)))
        mean = float(accelerator.reduce(total, "sum"))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            ids = np.concatenate([batch.example_ids for batch in batches]).tolist()
            raise PlumlineError(
                f"{self.stage}: loss {mean}, gradient norm {norm} at step {step}, examples "
                f"{', '.join(map(str, ids[:16]))}{' …' if len(ids) > 16 else ''}; nothing was written; "
                f"lower learning_rate or look at these examples; {self._last_good()}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if step % EVERY == 0 or step == self.steps:
            self._hold()
        if self.average is not None:
            self.average.update(self.parameters, step)
        return mean

    def _hold(self) -> None:
        """Look at the distance to the anchor, and shorten it if it is too long."""
        if self.orbit is not None:
            self.tally.distance, shortened = self.orbit.hold(self.anchored)
            self.tally.averagings += shortened

    def _last_good(self) -> str:
        if self.checkpoint is None or not self.checkpoint.step:
            return "there is no checkpoint yet"
        return f"the last good state, of step {self.checkpoint.step}, stays in {self.checkpoint.folder}"

    def _rate(self, step: int) -> float:
        """Factor of the learning rate at a step (counted from 1)."""
        warm = min(1.0, step / (self.params.warmup_steps + 1))
        left = self.steps - step + 1
        falling = self.params.cooldown_share * self.steps
        return warm * (min(1.0, left / falling) if falling >= 1.0 else 1.0)


def _groups(model: Any, params: LoopParams) -> list[dict[str, Any]]:
    """Parameters by how they are trained: embeddings at a rate of their own, vectors (norms, biases) without decay."""
    ends = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    if isinstance(model, ItemModel):
        ends |= {id(table.weight) for table in model.modules() if isinstance(table, torch.nn.Embedding)}
    embeddings = [p for p in model.parameters() if id(p) in ends]
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in ends]
    vectors = [p for p in model.parameters() if p.ndim < 2 and id(p) not in ends]
    return [
        {"params": embeddings, "weight_decay": 0.0, "lr": params.learning_rate * params.embedding_rate},
        {"params": matrices, "weight_decay": params.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _pad(model: Any) -> int:
    pad = model.config.pad_token_id
    return int(pad) if pad is not None else 0


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Deterministic kernels on the CPU (on a GPU they are a decision of the recipe, at a price)."""
    memory: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    # Nothing here reads memory that nothing has written, so filling each new tensor first would be for nothing.
    memory.fill_uninitialized_memory = before and filled
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled
