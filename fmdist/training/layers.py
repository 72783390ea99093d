"""The layers of a module, from the input to the output, as per-layer learning rates count them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn


def layers(module: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer, in order of definition.

    A sequence or list of modules is opened, and so is a module that holds a list of modules, or nothing but
    one module. What has no parameter of two dimensions (normalization) belongs to the layer before it, and
    what stands in no layer (position embeddings) to the layer after it. A module says by attributes which of
    its lists are no layers one on top of the other: ``side_by_side`` names lists whose items are one layer
    together, ``in_step`` groups of lists of which the items of one position are one layer.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    >>> [[tuple(parameter.shape) for parameter in layer] for layer in layers(net)]
    [[(3, 2), (3,), (3,), (3,)], [(1, 3), (1,)]]
    """
    found: list[list[nn.Parameter]] = []
    waiting: list[nn.Parameter] = []
    for part in _parts(module):
        if isinstance(part, nn.Parameter):
            waiting.append(part)
            continue
        parameters = [parameter for one in part for parameter in one.parameters()]
        if found and all(parameter.ndim < 2 for parameter in parameters):
            found[-1] += parameters
        else:
            found.append(waiting + parameters)
            waiting = []
    if waiting:
        found.append(waiting)
    return found


def _parts(module: nn.Module) -> Iterator[Sequence[nn.Module] | nn.Parameter]:
    """Yield a module's own parameters, then the modules of each layer."""
    own = list(module.parameters(recurse=False))
    yield from own
    children = {
        name: child for name, child in module.named_children() if any(True for _ in child.parameters())
    }
    container = isinstance(module, nn.Sequential | nn.ModuleList)
    wrapper = len(children) == 1 and not own and not container
    together: Sequence[str] = getattr(module, "side_by_side", ())
    partners: dict[str, tuple[str, ...]] = {
        names[0]: names for names in getattr(module, "in_step", ()) if names[0] in children
    }
    done = {name for names in partners.values() for name in names[1:]}
    for name, child in children.items():
        inner = any(True for _ in child.children())
        if name in done:
            continue
        if name in partners:
            lists = [list(module.get_submodule(other).children()) for other in partners[name]]
            yield from zip(*[items for items in lists if items], strict=True)
        elif inner and name not in together and (wrapper or _is_opened(child)):
            yield from _parts(child)
        else:
            yield (child,)


def _is_opened(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) or any(
        isinstance(part, nn.ModuleList) for part in module.modules()
    )
