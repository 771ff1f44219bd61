"""One small adapter per operation: what it does with a parameter, in the words of `asrcl.curvature.estimation.uses`.

An adapter `(capture, func, *the operation's own arguments)` runs `func` and hands its uses to `capture.watch`. To add an
operation, write one and enter it in `ADAPTERS`. Without one, the parameters of an operation fall back to per-item gradients.

Layouts: linear maps work on the last axis, convolutions and channel norms on axis 1; everything is moved to `[*lead, features]`.
An `order` then makes the items one of the two first axes: it splits a first axis that the model has merged (`[N*P, F]`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asrcl.curvature.blocks import BlockKey
from asrcl.curvature.estimation import patches
from asrcl.curvature.estimation.masks import NO_AXIS, by_item
from asrcl.curvature.estimation.uses import Capturing, GroupUse, ItemUse, Layout, MapUse, TableUse, Use
from asrcl.curvature.parameters import View
from asrcl.curvature.torch_internals import linear_replaced

Adapter = Callable[..., Any]
LINEAR_ONLY = "layers='linear' covers the weights of linear maps alone"
SHARED = "used with something that all items of a batch share"
SQUARE = "used where a batch has as many positions as items, and nothing tells them apart"


def on_data(adapter: Adapter) -> Adapter:
    """An adapter for an operation on data; where its input is a parameter itself, all parameters there go item by item."""

    @wraps(adapter)
    def checked(capture: Capturing, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        if not capture.linear_only and isinstance(input, Tensor) and capture.index.owner(input) is not None:
            return capture.plain(func, input, *args, **kwargs)
        return adapter(capture, func, input, *args, **kwargs)

    return checked


@on_data
def linear(
    capture: Capturing, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *, order: Layout | None = None
) -> Tensor:
    """`y = W a + b` on the last axis."""
    output = func(input, weight, bias)
    uses = _map_uses(capture, input, weight, order)
    return capture.watch(output, [*uses, *_added(capture, bias, output.shape, order=order)])


@on_data
def matmul(capture: Capturing, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`a W` with a parameter on the right: a linear map whose weight lies transposed."""
    weight = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(weight, Tensor) or weight.dim() != 2 or capture.index.owner(weight) is None:
        return capture.plain(func, input, *args, **kwargs)
    return capture.watch(func(input, weight), _map_uses(capture, input, weight.mT))


def addmm(capture: Capturing, func: Any, *args: Any, **kwargs: Any) -> Any:
    """`b + a W`, as GPT-2 writes its linear maps."""
    if kwargs or len(args) != 3 or capture.index.owner(args[2]) is None or capture.index.owner(args[1]) is not None:
        return capture.plain(func, *args, **kwargs)
    bias, input, weight = args
    output = func(bias, input, weight)
    return capture.watch(output, [*_map_uses(capture, input, weight.mT), *_added(capture, bias, output.shape)])


def attention(capture: Capturing, func: Any, *args: Any, **kwargs: Any) -> Any:
    """`nn.MultiheadAttention`, whose inner linear maps run out of the mode's sight and are led past it."""
    plain = F.linear
    order = _time_first(args[0] if args else kwargs["query"], capture.items)

    def watched(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(capture, plain, input, weight, bias, order=order)

    # Every value inside comes from a watched linear map, but for the learned key and value that may be appended.
    for extra in (*args[7:9], kwargs.get("bias_k"), kwargs.get("bias_v")):
        capture.index.refuse(extra, "appended to the keys or values of an attention")
    with linear_replaced(watched):
        return func(*args, **kwargs)


def _time_first(query: Tensor, items: int) -> Layout:
    """The order of what is `[P, N, ...]`, or merged to `[P*N, ...]`, as everything inside `nn.MultiheadAttention` is."""
    axes = (query.shape[0], query.shape[1] if query.dim() == 3 else 1)

    def order(values: Tensor) -> Tensor:
        values = values.unflatten(0, axes) if values.dim() == 2 else values
        # Where the axes can be told apart anyway, moving them would only cost copies.
        return values.transpose(0, 1) if values.shape[0] in (1, items) else values

    return order


@on_data
def convolution(
    capture: Capturing,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolutions of 1 to 3 axes: patches are inputs; one map per group, small exact matrices for depthwise kernels."""
    output = func(input, weight, bias, stride, padding, dilation, groups)
    axes = weight.dim() - 2
    batched = input if input.dim() == axes + 2 else input[None]
    shape = patches.Shape.of(weight, stride, padding, dilation, groups)
    pointwise = groups == 1 and shape.pointwise
    if capture.linear_only and not pointwise:
        kernel = "x".join(str(size) for size in weight.shape[2:])
        reason = f"a convolution of kernel {kernel} in {groups} group(s); only pointwise ones are linear maps"
        capture.index.note(weight, reason)
        return output
    uses = _convolution_uses(capture, batched, weight, shape, output)
    return capture.watch(output, [*uses, *_added(capture, bias, output.shape, trailing=axes)])


def _convolution_uses(capture: Capturing, input: Tensor, weight: Tensor, shape: patches.Shape, output: Tensor) -> list[Use]:
    place = capture.index.matrix(weight)
    if place is None:
        return []
    values, axes = input.detach(), weight.dim() - 2
    rows = weight.shape[0] // shape.groups

    def channels_last(gradient: Tensor) -> Tensor:
        gradient = gradient if gradient.dim() == axes + 2 else gradient[None]
        return gradient.movedim(1, -1)

    batch, order, mixed = _by_items(capture, place.key.name, input.shape[:1])
    lead = torch.Size((*batch, *output.shape[-axes:]))
    if rows == 1 and shape.groups > 1:
        if mixed or not _tells_items(capture, batch):
            capture.index.refuse(weight, mixed or SHARED)
            return []

        def gradients(gradient: Tensor) -> Tensor:
            found = order(patches.depthwise_gradients(values, channels_last(gradient).movedim(-1, 1), shape))
            return _per_item(found, capture.items, len(batch))

        return [GroupUse(place.key, gradients)]
    uses: list[Use] = []
    for group in range(shape.groups):
        part = slice(group * rows, (group + 1) * rows)
        key = BlockKey(place.key.name, place.key.row_start + part.start, place.key.row_start + part.stop)
        take = partial(_unfold, values, shape, group, order)
        layout = partial(_part, lambda gradient: order(channels_last(gradient)), part)
        uses.append(MapUse(key, False, input, lead, take, layout, shared_values=False, mixed=mixed))
    return uses


def _unfold(values: Tensor, shape: patches.Shape, group: int, order: Layout) -> Tensor:
    return order(patches.unfold(values, shape, group))


def _part(layout: Layout, part: slice, gradient: Tensor) -> Tensor:
    return layout(gradient)[..., part]


def embedding(
    capture: Capturing,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """A table looked up by number; its input factor is the diagonal of how often each row was asked for."""
    if scale_grad_by_freq:
        return capture.plain(func, input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    output = func(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    padding = padding_idx if padding_idx is None or padding_idx >= 0 else weight.shape[0] + padding_idx
    return capture.watch(output, _table_uses(capture, input, weight, padding))


def getitem(capture: Capturing, func: Any, tensor: Tensor, index: Any) -> Any:
    """Rows of a parameter taken by a tensor of numbers: a table. Slices are views and no use."""
    numbers = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32)
    if not numbers or tensor.dim() != 2 or capture.index.owner(tensor) is None:
        return capture.plain(func, tensor, index)
    return capture.watch(func(tensor, index), _table_uses(capture, index, tensor, None))


def _table_uses(capture: Capturing, ids: Tensor, weight: Tensor, padding: int | None) -> list[Use]:
    if capture.linear_only:
        capture.index.note(weight, LINEAR_ONLY)
        return []
    place = capture.index.matrix(weight)
    if place is None:
        return []
    if place.transposed:
        capture.index.refuse(weight, "its columns are looked up, as of a transposed table")
        return []
    _, order, mixed = _by_items(capture, place.key.name, ids.shape)
    return [TableUse(place.key, order(ids.detach()), order, padding, mixed)]


def detach(capture: Capturing, func: Any, tensor: Tensor, *args: Any) -> Any:
    """A parameter held constant from here on, which looks like the parameter itself."""
    if torch.is_grad_enabled() and not capture.linear_only:
        capture.index.refuse(tensor, "used detached in one place")
    return func(tensor, *args)


def reshape(capture: Capturing, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    """No use, but it may merge the items with something else."""
    output = capture.plain(func, tensor, *args, **kwargs)
    capture.merges.note(tensor.shape, output.shape)
    return output


@on_data
def layer_norm(
    capture: Capturing,
    func: Any,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *more: Any,
) -> Tensor:
    """Scale and shift after normalising the last axes."""
    output = func(input, normalized_shape, weight, bias, eps, *more)
    plain = partial(_normalised, partial(func, normalized_shape=normalized_shape, eps=eps), input.detach())
    return capture.watch(output, _affine(capture, weight, bias, output.shape, 0, plain))


@on_data
def rms_norm(
    capture: Capturing,
    func: Any,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Scale after dividing by the root of the mean square."""
    output = func(input, normalized_shape, weight, eps)
    plain = partial(_normalised, partial(func, normalized_shape=normalized_shape, eps=eps), input.detach())
    return capture.watch(output, _affine(capture, weight, None, output.shape, 0, plain))


@on_data
def group_norm(
    capture: Capturing,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Scale and shift per channel after normalising groups of channels."""
    output = func(input, num_groups, weight, bias, eps)
    plain = partial(_normalised, partial(func, num_groups=num_groups, eps=eps), input.detach())
    return capture.watch(output, _affine(capture, weight, bias, output.shape, output.dim() - 2, plain))


@on_data
def instance_norm(
    capture: Capturing,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Scale and shift per channel after normalising every channel by itself, or with running statistics."""
    output = func(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    stored = {} if use_input_stats else {"running_mean": running_mean, "running_var": running_var}
    plain = partial(_normalised, partial(func, **stored, use_input_stats=use_input_stats, eps=eps), input.detach())
    return capture.watch(output, _affine(capture, weight, bias, output.shape, output.dim() - 2, plain))


@on_data
def batch_norm(
    capture: Capturing,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Scale and shift per channel after normalising with running statistics (those of the batch would mix the items)."""
    output = func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if training:
        for parameter in (weight, bias):
            capture.index.refuse(parameter, "normalised by batch statistics, which mix the items")
        return output
    settings = {"running_mean": running_mean, "running_var": running_var, "eps": eps}
    plain = partial(_normalised, partial(func, **settings), input.detach())
    return capture.watch(output, _affine(capture, weight, bias, output.shape, output.dim() - 2, plain))


def add(capture: Capturing, func: Any, input: Any, other: Any, **kwargs: Any) -> Any:
    """A sum with a parameter that is spread over the items: positional biases, class tokens, hand-written shifts."""
    parameter = _parameter(capture, input, other)
    sign = kwargs.get("alpha", 1) * (-1 if func in _SUBTRACTIONS else 1) if parameter is other else 1
    if parameter is None or set(kwargs) - {"alpha"}:
        return capture.plain(func, input, other, **kwargs)
    output = func(input, other, **kwargs)
    return capture.watch(output, _added(capture, parameter, output.shape, sign=float(sign)))


def multiply(capture: Capturing, func: Any, input: Any, other: Any, **kwargs: Any) -> Any:
    """A product with a parameter that is spread over the items: layer scales, hand-written norms."""
    parameter = _parameter(capture, input, other)
    if parameter is None or kwargs:
        return capture.plain(func, input, other, **kwargs)
    partner = other if parameter is input else input
    output = func(input, other)
    times = partner.detach() if isinstance(partner, Tensor) else partner
    return capture.watch(output, _spread(capture, parameter, output.shape, lambda g: g * times))


def _parameter(capture: Capturing, input: Any, other: Any) -> Tensor | None:
    """The one operand of two that is a parameter; None for none, for both, and where only linear maps are wanted."""
    if capture.linear_only:
        return None
    owned = [t for t in (input, other) if isinstance(t, Tensor) and capture.index.owner(t) is not None]
    return owned[0] if len(owned) == 1 else None


def _map_uses(capture: Capturing, input: Tensor, weight: Tensor, order: Layout | None = None) -> list[Use]:
    if weight.dim() != 2:
        capture.index.refuse(weight, "a vector in place of a matrix")
        return []
    place = capture.index.matrix(weight)
    if place is None:
        return []
    values = input.detach()
    if values.dim() == 1:
        return [MapUse(place.key, place.transposed, input, torch.Size((1,)), lambda: values[None], lambda g: g[None])]
    lead, order, mixed = _by_items(capture, place.key.name, input.shape[:-1], order)
    return [MapUse(place.key, place.transposed, input, lead, lambda: order(values), order, mixed=mixed)]


def _by_items(
    capture: Capturing, name: str, lead: torch.Size, order: Layout | None = None
) -> tuple[torch.Size, Layout, str]:
    """The order that brings the items first as far as need be, what it makes of leading axes, and why it is not sure, if so.

    Args:
        capture: knows the batch.
        name: of the parameter.
        lead: leading axes of one of its uses.
        order: where it is known.
    """
    if order is not None:
        return order(torch.empty((*lead, 0), device="meta")).shape[:-1], order, ""
    lead, split = _split(capture, lead)
    axis = capture.axes.of(name, lead, capture.items)
    if axis == 1 and lead[0] == capture.items > 1:
        return lead, lambda values: split(values).transpose(0, 1), ""
    return lead, split, SQUARE if axis is None else SHARED if axis == NO_AXIS else ""


def _split(capture: Capturing, lead: torch.Size) -> tuple[torch.Size, Layout]:
    """How to split a first axis where it was merged, and the leading axes that makes."""
    axes = capture.merges.split(lead[0], capture.items) if lead else None
    return (lead, _same) if axes is None else (torch.Size((*axes, *lead[1:])), lambda values: values.unflatten(0, axes))


def _added(
    capture: Capturing,
    parameter: Tensor | None,
    shape: torch.Size,
    trailing: int = 0,
    sign: float = 1.0,
    order: Layout | None = None,
) -> list[Use]:
    """A parameter added to an output of a shape, its last axis `trailing` axes before the end."""
    return _spread(capture, parameter, shape, _same if sign == 1 else lambda g: g * sign, trailing, order)


def _affine(
    capture: Capturing,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: torch.Size,
    trailing: int,
    normalised: Callable[[], Tensor],
) -> list[Use]:
    scale = _spread(capture, weight, shape, lambda g: g * normalised().to(g), trailing)
    return [*scale, *_added(capture, bias, shape, trailing)]


def _spread(
    capture: Capturing,
    parameter: Tensor | None,
    shape: torch.Size,
    contribution: Layout,
    trailing: int = 0,
    order: Layout | None = None,
) -> list[Use]:
    """A parameter spread over an output of a shape, whose gradient is the sum of `contribution(output gradient)`."""
    if parameter is None or capture.index.owner(parameter) is None:
        return []
    if capture.linear_only:
        capture.index.note(parameter, LINEAR_ONLY)
        return []
    view = capture.index.view(parameter)
    if view is None:
        return []
    own = [*parameter.shape, *[1] * trailing]
    while own and own[0] == 1:
        own.pop(0)
    lead = shape[: len(shape) - len(own)]
    lead, moved, mixed = _by_items(capture, view.name, lead, order) if lead else (lead, _same, "")
    if mixed or not _tells_items(capture, lead):
        capture.index.refuse(parameter, mixed or SHARED)
        return []
    return [ItemUse(view, partial(_item_gradients, capture.items, view, own, lambda g: moved(contribution(g))))]


def _item_gradients(items: int, view: View, own: list[int], contribution: Layout, gradient: Tensor) -> Tensor:
    """The gradient of every item `[N, *view.shape]`."""
    spread = contribution(gradient)
    grouped = _per_item(spread, items, spread.dim() - len(own))
    repeated = [axis + 1 for axis, size in enumerate(own) if size == 1 and grouped.shape[axis + 1] > 1]
    if repeated:
        grouped = grouped.sum(repeated, keepdim=True)
    return grouped.reshape(items, *view.shape)


def _per_item(values: Tensor, items: int, axes: int) -> Tensor:
    """The sum over all leading axes but the items, `[N, *rest]`."""
    grouped = by_item(values, items, axes)
    assert grouped is not None
    return grouped.sum(1)


def _tells_items(capture: Capturing, lead: torch.Size) -> bool:
    """Whether leading axes keep the items apart."""
    if capture.items == 1 and not lead:
        return True
    return bool(lead) and by_item(torch.empty(lead, device="meta"), capture.items, len(lead)) is not None


def _normalised(func: Callable[..., Tensor], input: Tensor) -> Tensor:
    """An input normalised without scale and shift."""
    with torch.no_grad():
        return func(input)


def _same(gradient: Tensor) -> Tensor:
    return gradient


_SUBTRACTIONS = {Tensor.sub, torch.sub, Tensor.sub_, Tensor.__sub__, Tensor.__isub__}
_ADDITIONS = {Tensor.add, torch.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
_RESHAPES = {Tensor.reshape, torch.reshape, Tensor.view, Tensor.flatten, torch.flatten, Tensor.reshape_as, Tensor.view_as}
ADAPTERS: dict[Any, Adapter] = {
    F.linear: linear,
    F.multi_head_attention_forward: attention,
    torch.addmm: addmm,
    F.embedding: embedding,
    Tensor.__getitem__: getitem,
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    F.batch_norm: batch_norm,
    **dict.fromkeys((Tensor.matmul, torch.matmul, torch.mm, Tensor.mm, Tensor.__matmul__), matmul),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), convolution),
    **dict.fromkeys((*_ADDITIONS, *_SUBTRACTIONS), add),
    **dict.fromkeys((Tensor.mul, torch.mul, Tensor.__mul__, Tensor.__rmul__), multiply),
    **dict.fromkeys(_RESHAPES, reshape),
    **dict.fromkeys((Tensor.detach, torch.detach, Tensor.data.__get__), detach),  # type: ignore[attr-defined]
}
