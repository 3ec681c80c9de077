"""A module that stores tensors under dotted names."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn


class TensorTree(nn.Module):
    """Store tensors under dotted names in nested empty modules, as parameters if `trained(name)`, else as buffers."""

    def __init__(self, tensors: Mapping[str, Tensor], trained: Callable[[str], bool]):
        super().__init__()
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            module = self
            for part in path:
                children = dict(module.named_children())
                if part not in children:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            if trained(name):
                module.register_parameter(leaf, nn.Parameter(tensor))
            else:
                module.register_buffer(leaf, tensor)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, not detached."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}
