"""Tensors that may lie in shards among processes (FSDP), as wholes and back. It imports torch: import it late."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Tensor) -> Tensor:
    """A tensor without its sharding; all processes must call this together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor from the CPU, on the device and in the shards of another one."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)
