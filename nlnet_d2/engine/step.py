"""One iteration of training, on any device: forward, backward, report, update."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nlnet_d2.engine.errors import Diverged
from nlnet_d2.engine.loader import TrainLoader, sample_name


class TrainStep(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, also on the CPU.

    Unlike them, all processes learn of a loss or gradient that is not finite, and of a wish to stop, in the
    same iteration, so that none is left waiting for the others.

    Args:
        model, data_loader, optimizer: as in ``SimpleTrainer``.
        precision: torch.float16 (with loss scaling), torch.bfloat16, or None for no mixed precision.
        accumulate: parts in which each batch goes through the model, one after the other: less memory, the
            same update as far as the loss is a mean over images and no norm looks at the batch. (The losses
            of boxes and masks are means over the objects of a part.)

    Attributes:
        stop_requested: set it to ask all processes to stop.
        stop: whether, as of this iteration, any process asked to.
        gradient_norm: of the last gradient that was finite, before clipping.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        precision: torch.dtype | None = None,
        accumulate: int = 1,
    ):
        super().__init__(model, data_loader, optimizer)
        self.device = next(model.parameters()).device
        self.precision, self.accumulate = precision, accumulate
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.stop_requested = self.stop = False
        self.gradient_norm = math.nan

    def run_step(self) -> None:
        """Forward and backward on the next batch, in its parts, then one update of the weights.

        Raises:
            Diverged: a loss or the gradient is not finite; the weights are those of the last iteration.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        get_event_storage().put_scalar("data_time", time.perf_counter() - start)
        self.optimizer.zero_grad()
        parts = [batch[i :: self.accumulate] for i in range(self.accumulate)]
        losses = [self._accumulate(part, is_last=part is parts[-1]) for part in parts]
        means = {name: sum(part[name] for part in losses) / len(losses) for name in losses[0]}
        self._report(means, batch)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def close(self) -> None:
        """Let the loader's processes go, or the end of the interpreter waits for them (see loader.GRACE)."""
        if isinstance(self.data_loader, TrainLoader):
            self._data_loader_iter.close()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty where the run had none
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

    def _accumulate(self, part: list[dict], is_last: bool) -> dict[str, torch.Tensor]:
        """Add the gradients of a part of the batch to those there; returns its losses.

        The processes exchange the sum of all parts, with the last one.
        """
        wait = isinstance(self.model, DistributedDataParallel) and not is_last
        with self.model.no_sync() if wait else nullcontext():
            with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None):
                losses = self._forward(part)
            self.grad_scaler.scale(sum(losses.values()) / self.accumulate).backward()
        return {name: loss.detach().float() for name, loss in losses.items()}

    def _forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        try:
            return self.model(batch)
        except FloatingPointError as error:  # the proposals look at themselves before there are losses
            raise self._diverged(str(error), _names(batch), batch) from error

    def _report(self, losses: Mapping[str, torch.Tensor], batch: list[dict]) -> None:
        """Store the losses, averaged over all processes in one transfer together with the stop flag."""
        own = torch.stack(list(losses.values()))
        shared = torch.cat([own, self._norm_of_gradient().to(own), own.new_tensor([self.stop_requested])])
        if comm.get_world_size() > 1:
            dist.all_reduce(shared)
        *values, norm, stop = (value / comm.get_world_size() for value in shared.tolist())
        self.stop = stop > 0
        means = dict(zip(losses, values, strict=True))
        self._require_finite(means, norm, batch, own_is_finite=bool(torch.isfinite(own).all()))
        get_event_storage().put_scalars(total_loss=sum(values), **means)

    def _norm_of_gradient(self) -> torch.Tensor:
        norms = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        return torch.stack(norms).norm(keepdim=True) / self.grad_scaler.get_scale()

    def _require_finite(
        self, losses: Mapping[str, float], norm: float, batch: list[dict], own_is_finite: bool
    ) -> None:
        """Raise Diverged in all processes, with the samples of those whose own losses are to blame."""
        if math.isfinite(norm):
            self.gradient_norm = norm
        loss_is_finite = math.isfinite(sum(losses.values()))
        # In float16 the gradient may overflow: then GradScaler skips the update and lowers its scale.
        if loss_is_finite and (math.isfinite(norm) or self.grad_scaler.is_enabled()):
            return
        suspects = [] if own_is_finite and not loss_is_finite else batch
        names = [name for process in comm.all_gather(_names(suspects)) for name in process]
        what = "the gradient" if loss_is_finite else "the loss"
        shown = ", ".join(f"{name} = {value:.6g}" for name, value in losses.items())
        raise self._diverged(f"{what} is not finite: {shown}", names, suspects)

    def _diverged(self, what: str, names: list[str], batch: Sequence[Mapping]) -> Diverged:
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        return Diverged(
            f"iteration {self.iter}, learning rate {rate:.6g}, norm of the last finite gradient "
            f"{self.gradient_norm:.6g}: {what}"
            + "".join(f"\n  in the batch: {name}" for name in names)
            + "\nLower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, or look at the annotations of these",
            batch,
        )


def _names(batch: list[dict]) -> list[str]:
    return [sample_name(record) for record in batch]
