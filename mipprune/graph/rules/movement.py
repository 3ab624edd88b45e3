"""Operations that only move elements: they are run on the labels themselves."""

from __future__ import annotations

from typing import Any

import torch

from ..capture import packet_of
from ..context import Context, Labels, Value
from ..registry import register_rule
from ..sizes import TensorSize
from .elementwise import names

_COPYING: dict[str, Any] = {"aten.view.default": torch.ops.aten.reshape.default,
                            "aten._unsafe_view.default": torch.ops.aten.reshape.default}


def moved(c: Context, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The operation on labels, and on element numbers where its one tensor is a parameter (else ``None``)."""
    # labels are often broadcast, where a view can't be had
    target: Any = _COPYING.get(str(c.node.target), c.node.target)
    origin = args[0].origin if isinstance(args[0], Value) else None
    labels = target(*_plain(args, lambda v: v.labels), **kwargs)
    if origin is None or sum(isinstance(a, Value) for a in args) > 1:
        return labels, None
    elements = target(origin[1], *args[1:], **kwargs)
    return labels, (origin[0], elements)


def _plain(args: Any, of: Any) -> Any:
    if isinstance(args, Value):
        return of(args)
    return type(args)(_plain(a, of) for a in args) if isinstance(args, (list, tuple)) else args


def wrapped(labels: Any, source: Any) -> Any:
    """Labels with the parameter's element numbers beside them, where there are any."""
    if source is None:
        return tuple(labels) if isinstance(labels, (list, tuple)) else labels
    name, elements = source
    if isinstance(labels, (list, tuple)):
        return tuple(Value(x, None, (name, e)) for x, e in zip(labels, elements))
    return Value(labels, None, (name, elements))


@register_rule(*names(
    "permute", "transpose", "t", "squeeze", "unsqueeze", "flip", "movedim", "numpy_T", "adjoint", "mT", "flatten",
    "swapaxes", "atleast_1d", "ravel",
))
def _move(c: Context, *args: Any, **kwargs: Any) -> Any:
    """Nothing but the order changes, whatever the sizes."""
    labels, source = moved(c, *args, **kwargs)
    return wrapped(c.single(labels), source)


@register_rule(*names("view", "reshape", "_unsafe_view", "unflatten", "view_as", "reshape_as"))
def _reshape(c: Context, *args: Any, **kwargs: Any) -> Any:
    """Sizes are given: the dimension that units lie along afterwards has to follow them."""
    before: Labels = args[0].labels
    labels, source = moved(c, *args, **kwargs)
    sizes_at = next((i for i, a in enumerate(c.node.args) if i and isinstance(a, (list, tuple))), None)
    labels = c.single(labels, _preferred(c, before, labels, sizes_at))
    if sizes_at is not None:
        dim, along = c.carry(labels)
        sizes: Any = c.node.args[sizes_at]
        offset = labels.ndim - len(sizes) if "unflatten" not in str(c.node.target) else args[1] % before.ndim
        for item in range(len(sizes)):
            position = item + offset
            c.size(along if position == dim else c.zeros([labels.shape[position]]), sizes_at, item)
    return wrapped(labels, source)


def _preferred(c: Context, before: Labels, after: Labels, sizes_at: int | None) -> int | None:
    """Where units go when a reshape splits the dimension they lie along: the first size that isn't a plain number,
    when an attention follows; else the largest such size.
    """
    if sizes_at is None:
        return None
    sizes: Any = c.node.args[sizes_at]
    offset = after.ndim - len(sizes)
    free = []
    for item in range(len(sizes)):
        origin = c.origin(sizes_at, item)
        if origin is not None and (origin == -1 or not isinstance(origin, int)):
            free.append(item + offset)
    varying = [d for d in free if after.shape[d] > 1 and bool((after != after.narrow(d, 0, 1)).any())]
    if not varying:
        return None
    return varying[0] if _meets_attention(c.node) else max(varying, key=lambda d: after.shape[d])


_PASSING = {
    "permute", "transpose", "unbind", "getitem", "select", "chunk", "split", "slice", "squeeze", "unsqueeze", "add",
    "mul", "neg", "cat", "contiguous", "clone", "expand", "reshape", "view", "to", "_to_copy", "movedim", "div",
    "_unsafe_view", "flatten", "layer_norm", "rms_norm", "pow", "mean", "rsqrt", "float", "type_as",
    "sub", "stack", "repeat", "repeat_interleave", "view_as_complex", "view_as_real",
}


def _meets_attention(node: Any) -> bool:
    """Whether the value of ``node`` reaches an attention or a product of activations by moves and rotations only."""
    seen, todo = set(), [node]
    while todo:
        for user in todo.pop().users:
            name = packet_of(user)
            if name in {"scaled_dot_product_attention", "matmul", "bmm", "einsum", "softmax", "baddbmm"}:
                return True
            if "getitem" in str(user.target):
                name = "getitem"
            if name in _PASSING and user not in seen:
                seen.add(user)
                todo.append(user)
    return False


@register_rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def _expand(c: Context, x: Value, sizes: Any, **_: Any) -> Any:
    labels = x.labels.expand(c.shape)
    offset = len(c.shape) - x.labels.ndim
    if isinstance(sizes, Value):
        like, units = c.carry(sizes)
        if like is not None and (like < offset or x.labels.shape[like - offset] == 1) and not bool(labels.any()):
            return c.spread(units, like, c.shape)  # as many copies as the other tensor has units
        return _expanded(c, x, labels, offset)
    dim, along = c.carry(labels)
    if dim is None and x.origin is None:  # a size taken from units makes as many copies as there are units
        for item, length in enumerate(c.shape):
            origin = c.origin(1, item)
            if isinstance(origin, TensorSize) and (item < offset or x.labels.shape[item - offset] == 1 < length):
                found = c.labels_of(origin)
                if found is not None and bool(found.any()):
                    dim, along, labels = item, found, c.spread(found, item, c.shape)
                    break
    for item, length in enumerate(c.shape):
        c.size(along if item == dim else c.zeros([length]), 1, item)
    return _expanded(c, x, labels, offset)


def _expanded(c: Context, x: Value, labels: Labels, offset: int) -> Any:
    if x.origin is None:
        return labels
    elements = x.origin[1].reshape(*[1] * offset, *x.labels.shape).expand(c.shape)
    return Value(labels, None, (x.origin[0], elements))


@register_rule("aten.cat.default", "aten.concat", "aten.concatenate")
def _cat(c: Context, values: list[Value], dim: int = 0) -> Labels:
    dim %= len(c.shape)
    values = [v for v in values if tuple(v.labels.shape) != (0,)]
    found = [c.carry(v) for v in values]
    across = [(d, labels) for d, labels in found if d is not None and d != dim]
    if not across:
        vectors = [(v, _vector_along(c, v, dim)) for v in values]
        return torch.cat([v.labels if vector is None else vector for v, vector in vectors], dim)
    carry, labels = across[0]
    for value, (own, theirs) in zip(values, found):
        if own == carry:
            c.couple(labels, theirs)
        elif own is not None:
            c.pin(torch.cat([labels, theirs]), "concatenated with units along another dimension")
        else:
            c.match(carry, labels, value, len(c.shape))
    return c.spread(labels, carry, c.shape)


def _vector_along(c: Context, value: Value, dim: int) -> Labels | None:
    """Labels of a parameter that is a vector along ``dim``, as large as the value."""
    if value.origin is None or value.labels.numel() != value.labels.shape[dim]:
        return None
    own = c.along(value, dim)
    return None if own is None else c.spread(own, dim, value.labels.shape)


@register_rule("aten.stack.default")
def _stack(c: Context, values: list[Value], dim: int = 0) -> Labels:
    dim %= len(c.shape)
    found = [c.carry(v) for v in values]
    first = next(((d, labels) for d, labels in found if d is not None), None)
    if first is None:
        return c.zeros()
    carry, labels = first
    for value, (own, theirs) in zip(values, found):
        if own == carry:
            c.couple(labels, theirs)
        elif own is not None:
            c.pin(torch.cat([labels, theirs]), "stacked with units along another dimension")
        else:
            c.match(carry, labels, value, value.labels.ndim)
    return c.spread(labels, carry + (carry >= dim), c.shape)


@register_rule("aten.split", "aten.split_with_sizes")
def _split(c: Context, x: Value, sizes: Any, dim: int = 0) -> Any:
    labels, source = moved(c, x, sizes, dim)
    carry, _ = c.carry(x)
    if carry == dim % x.labels.ndim:
        vectors = [c.carry(part)[1] for part in labels]
        if isinstance(sizes, int):
            _tie(c, [v if len(v) else p for v, p in zip(vectors, labels)])
            c.size(_one_dim(c, labels[0], carry), 1)
        else:
            for item, part in enumerate(labels):
                c.size(_one_dim(c, part, carry), 1, item)
    return wrapped(labels, source)


def _one_dim(c: Context, labels: Labels, dim: int) -> Labels:
    return labels.movedim(dim, -1).reshape(-1, labels.shape[dim])[0]


def _tie(c: Context, parts: list[Labels]) -> None:
    """Equal parts lose the same entries, so that they stay equal parts."""
    for part in parts[1:]:
        if part.shape == parts[0].shape:
            c.couple(parts[0], part)
        else:
            c.pin(part, "cut into parts of different sizes")
            c.pin(parts[0], "cut into parts of different sizes")


@register_rule("aten.chunk", "aten.tensor_split")
def _chunk(c: Context, x: Value, chunks: Any, dim: int = 0) -> Any:
    labels, source = moved(c, x, chunks, dim)
    if c.carry(x)[0] == dim % x.labels.ndim:
        _tie(c, list(labels))
    return wrapped(labels, source)


@register_rule("aten.unbind", "aten.select")
def _take_one(c: Context, x: Value, dim: int = 0, *index: int) -> Any:
    carry, along = c.carry(x)
    if carry == dim % x.labels.ndim:
        c.pin(along, "single units are taken out by number")
        x = Value(torch.zeros_like(x.labels))
    labels, source = moved(c, x, dim, *index)
    return wrapped(labels, source)


@register_rule("aten.slice", "aten.narrow")
def _slice(c: Context, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    labels, source = moved(c, *[x, dim, start, end, step][: len(c.node.args)])
    dim %= x.labels.ndim
    carry, along = c.carry(x)
    if carry == dim and labels.shape != x.labels.shape:
        if step != 1 or "narrow" in str(c.node.target):
            c.pin(along, "every other unit is taken out by number")
        else:
            _slice_bounds(c, along, start, end)
    return wrapped(labels, source)


def _slice_bounds(c: Context, along: Labels, start: int | None, end: int | None) -> None:
    """The bounds have to fall between the same units as before."""
    if start is not None and start != 0:
        if start < 0:
            c.pin(along[start:], "the last units are taken out by number")
        else:
            c.size(along[:start], 2)
    if end is not None and end < 0:
        c.pin(along[end:], "the last units are cut off by number")
    elif end is not None and end < len(along):
        c.size(along[:end], 3)


@register_rule("aten.gather")
def _gather(c: Context, x: Value, dim: int, index: Value, **_: Any) -> Labels:
    carry, along = c.carry(x)
    if carry is None:
        return c.zeros()
    if carry == dim % x.labels.ndim:
        c.pin(along, "units are taken out by index")
        return c.zeros()
    c.match(carry, along, index, x.labels.ndim)
    return c.spread(along, carry, c.shape)


@register_rule("aten.index_select", "aten.index.Tensor")
def _index(c: Context, x: Value, *rest: Any) -> Any:
    if x.origin is not None:  # a table looked up: which rows are taken isn't known, the other dimensions stay
        target: Any = c.node.target
        return Value(c.zeros(), None, (x.origin[0], target(x.origin[1], *_plain(rest, lambda v: v.labels))))
    carry, along = c.carry(x)
    if carry is None:
        return c.zeros()
    if isinstance(rest[0], list):
        found = [(position, index) for position, index in enumerate(rest[0]) if index is not None]
    else:
        found = [(rest[0] % x.labels.ndim, rest[1])]
    place, index = found[0]
    if len(found) > 1 or place == carry:
        c.pin(along, "units are taken out by index")
        return c.zeros()
    return c.spread(along, carry + (index.labels.ndim - 1 if carry > place else 0), c.shape)


@register_rule("aten.roll")
def _roll(c: Context, x: Value, shifts: Any, dims: Any = ()) -> Any:
    """Rolled along the units themselves, each keeps its neighbour only if none in between leaves."""
    carry, along = c.carry(x)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if carry is not None and (not dims or carry in [d % x.labels.ndim for d in dims]):
        return _rolled_units(c, x, carry, along, shifts, dims)
    labels, source = moved(c, x, shifts, dims)
    return wrapped(labels, source)


def _rolled_units(c: Context, x: Value, carry: int, along: Labels, shifts: Any, dims: list[int]) -> Any:
    """A shift by k moves the last k units to the front: how many these are must not change."""
    if not dims:
        c.pin(along, "rolled through a flattened tensor")
        return c.zeros()
    shift = ([shifts] if isinstance(shifts, int) else list(shifts))[[d % x.labels.ndim for d in dims].index(carry)]
    shift %= len(along)
    if shift:
        c.pin(along[-shift:], "units are rolled around by a number")
    return moved(c, x, shifts, dims)[0]


@register_rule("aten.repeat", "aten.tile")
def _repeat(c: Context, x: Value, repeats: Any) -> Any:
    labels, source = moved(c, x, repeats)
    return wrapped(labels, source)


@register_rule("aten.repeat_interleave.self_int")
def _repeat_interleave(c: Context, x: Value, repeats: int, dim: int | None = None, **_: Any) -> Any:
    labels, source = moved(c, x, repeats, dim)
    return wrapped(c.single(labels), source)


@register_rule("aten.pixel_shuffle", "aten.channel_shuffle")
def _shuffle(c: Context, x: Value, factor: int) -> Any:
    """Channel i of the result comes from ``factor`` squared channels, or from one of every group."""
    dim, along = c.carry(x)
    square = factor**2 if "pixel" in str(c.node.target) else factor
    if dim == x.labels.ndim - 3:
        if "pixel" in str(c.node.target):
            blocks = along.reshape(-1, square)
            c.couple(blocks, blocks[:, :1].expand(blocks.shape))
            return c.spread(blocks[:, 0], dim, c.shape)
        rows = along.reshape(factor, -1)
        c.couple(rows, rows[:1].expand(rows.shape))
        return c.spread(rows[:1].expand(rows.shape).t().reshape(-1), dim, c.shape)
    if dim is not None:
        c.pin(along, "shuffled along another dimension")
    return c.zeros()


@register_rule("aten.pixel_unshuffle")
def _unshuffle(c: Context, x: Value, factor: int) -> Any:
    dim, along = c.carry(x)
    if dim == x.labels.ndim - 3:
        return c.spread(along.repeat_interleave(factor**2), dim, c.shape)
    c.pin(x.labels, "shuffled along another dimension")
    return c.zeros()


@register_rule("aten.view_as_complex")
def _view_as_complex(c: Context, x: Value) -> Any:
    """Pairs along the last dimension become one complex number, as rotary embeddings are often written."""
    carry, along = c.carry(x)
    if carry == x.labels.ndim - 1:
        c.pin(along, "real and imaginary parts aren't units")
        return c.zeros()
    return x.labels[..., 0]


@register_rule("aten.view_as_real")
def _view_as_real(c: Context, x: Value) -> Any:
    return x.labels[..., None].expand(c.shape)


@register_rule("<built-in function getitem>")
def _getitem(c: Context, values: Any, index: Any) -> Any:
    return values[index]
