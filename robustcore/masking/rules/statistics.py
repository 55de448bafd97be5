"""Rules of normalisation by statistics of the image at hand."""

from __future__ import annotations

from torch import nn

from robustcore.masking.rules.call import Call, Row, Value
from robustcore.masking.rules.pixels import inner, pointwise, vector


def group_norm(call: Call) -> Row:
    module = call.module
    if call.x.kind == "vector":
        return vector(call)
    call.want_map()
    if isinstance(module, nn.InstanceNorm2d):
        if module.track_running_stats:
            return pointwise(call)
        groups = module.num_features
    else:
        assert isinstance(module, nn.GroupNorm)
        groups = module.num_groups
    return call.row(Value("map", call.mask), "clean", then="norm", groups=groups)


def layer_norm(call: Call) -> Row:
    shape = call.option("normalized_shape", 1)
    if call.x.kind == "map" and not call.x.last and len(shape) == 3:
        if call.module is None:
            raise call.refuse("statistics over pixels, want the module nn.LayerNorm")
        return call.row(Value("map", call.mask), "clean", then="norm")
    if call.x.kind == "map" and len(shape) != 1:
        raise call.refuse(f"normalized_shape {shape} mixes some pixels and not others")
    return inner(call)
