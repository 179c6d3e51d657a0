"""BatchNorm over all ranks, so that a run on many devices has the loss and gradient of a run on one."""

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics come from every rank.

    ``torch.nn.SyncBatchNorm`` does this on accelerators only; this is the same for processes that talk over gloo.
    Every rank must hold equally many samples.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        if input.ndim < 2:
            raise ValueError(f"expected at least 2 dimensions, got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise ``(B, C, …)`` by mean and variance over all ranks' batches."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()  # 8 bits are too few for statistics
        axes = [0, *range(2, values.ndim)]
        world = dist.get_world_size()
        mean = all_reduce(values.mean(axes)) / world
        shape = [1, -1, *[1] * (values.ndim - 2)]
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().mean(axes)) / world
        self._track(mean.detach(), variance.detach(), count=world * values.numel() // values.shape[1])
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if not self.track_running_stats:
            return
        momentum = cast(float, self.momentum)
        cast(Tensor, self.num_batches_tracked).add_(1)
        cast(Tensor, self.running_mean).lerp_(mean, momentum)
        cast(Tensor, self.running_var).lerp_(variance * count / (count - 1), momentum)


def synchronise_batch_norm(module: nn.Module, accelerator: str) -> nn.Module:
    """Replace every BatchNorm by one that looks at all ranks; parameter names stay.

    Args:
        module: Changed in place where possible.
        accelerator: ``cpu`` for gloo, anything else for torch's own.
    """
    if accelerator != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in list(module.named_children()):
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            twin = CpuSyncBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            twin.load_state_dict(child.state_dict())
            twin.train(child.training)
            for parameter in twin.parameters():
                parameter.requires_grad_(next(child.parameters()).requires_grad)
            setattr(module, name, twin)
        else:
            synchronise_batch_norm(child, accelerator)
    return module
