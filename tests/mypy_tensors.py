"""
What `make lint` tells mypy about torch: `torch.LongTensor` and its like are labels for the reader, as in transformers.

Every operation of torch returns a `Tensor`, so that mypy would refuse any of them where an annotation names the kind.
"""

from collections.abc import Callable

from mypy.plugin import AnalyzeTypeContext, Plugin
from mypy.types import Type

LABELS = {f"{module}.{kind}Tensor" for module in ("torch", "torch._C") for kind in ("Bool", "Byte", "Float", "Long")}


class TensorLabels(Plugin):
    def get_type_analyze_hook(self, fullname: str) -> Callable[[AnalyzeTypeContext], Type] | None:
        return _read_as_tensor if fullname in LABELS else None


def _read_as_tensor(context: AnalyzeTypeContext) -> Type:
    return context.api.named_type("torch._tensor.Tensor", [])


def plugin(version: str) -> type[Plugin]:
    return TensorLabels
