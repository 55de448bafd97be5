"""Why some of the values are no errors: rules by kind of argument, and what is about a few."""

from fnmatch import fnmatch

# ---- what is not tried ---------------------------------------------------------------------------

EXEMPT = {
    "attacks.*.method": "what an attack's run asks of the attack",
    "density.GroupImages": "a result: load_waterbirds and load_celeba make it",
    "masking.Plan*": "a result: make_plan makes it",
    "smoothing.StoppedCertificates.top_k_radius": "refuses whatever it is asked",
    "smoothing.*.from_counts": "makes a result of votes that the package counted",
    "smoothing.*.from_votes": "the same",
    **{
        f"smoothing.*.{asked}": "what Smooth asks a distribution, of images that it has checked"
        for asked in (
            "augment", "check", "count", "influence", "num_samples", "output_shape", "radius",
            "radius_of_votes", "sample", "shift", "total_variation", "views",
        )
    },
}  # fmt: skip

# (callable, arguments, labels): what was asked for, and takes its time.
LONG = [("smoothing.Smooth*.* smoothing.AdaptiveMix.*", "n0 n max_n", {"2**31"})]


def takes_long(name, argument, label):
    return any(matches(name, argument, label, *entry) for entry in LONG)


# ---- labels that go together ---------------------------------------------------------------------

NUMBER = {"3", "0.5", "np.float32(0.5)", "np.int64(3)", "Fraction(1, 2)"}
INTEGER = {"3", "np.int64(3)", "tensor a 0-d int"}
LARGE = {"2**31", "2**62", "2**64", "1e300"}
LARGE_INTEGER = {"2**31", "2**62", "2**64", "10**400"}
NEGATIVE = {"-1", "-0.5", "-2**63", "np.int8(-1)"}
PAIR = {"(1, 2)"}
INTEGERS = {"(1, 2)", "range(3)", "an int array", "tensor int64 [3]"}
NUMBERS = {*INTEGERS, "(1, 2, 3, 4, 5)", "a float array", "tensor [7]", "tensor [0]", "[]"}
NUMBER_TENSOR = {"tensor a number", "tensor a 0-d int"}
FUNCTION = {"a function to None", "a function to a string", "a function to [N, 1, 1]"}
CALLABLE = {*FUNCTION, "a class", "a module"}
TENSOR = {"tensor a number", "tensor [0]", "tensor [7]", "tensor [0] * 4", "tensor [1] * 6"}
META = {"itself meta", "tensor meta [3]"}


def itself(*how):
    return {f"itself {each}" for each in how}


LAYOUT = itself("with the bit of negation", "overlapping itself", "a Parameter")
GRADIENT = itself("that wants a gradient")
FINITE = itself("negative", "times 1e30", "int64 max")
VALUES = FINITE | itself("with a nan", "with an inf")
FLOATING = itself("float64", "float16", "bfloat16")
ROWS = itself("without rows", "of half the rows", "of twice the rows")
SIZES = ROWS | itself(
    "without columns", "of twice the columns", "with one more at the end",
    "with an empty last dimension", "of one more dimension", "of one fewer",
)  # fmt: skip
LISTED = itself("as an array", "as a list", "uint8")

# ---- reasons -------------------------------------------------------------------------------------

# By what is in an argument's annotation or default.
OF_KIND = {
    "None": ({"None"}, "None is documented"),
    "bool": ({"True", "np.bool_(True)"}, "a flag is a flag, NumPy's too"),
    "float": (NUMBER, "a number in range, whatever its class"),
    "int": (INTEGER, "an integer is what has __index__"),
    "Tensor": (LAYOUT | GRADIENT, "any layout in, and what autograd says changes nothing"),
}

DATA = "the values of a tensor are data: what is no number stays none"
FREE = "sizes are free where nothing has to match"
DTYPE = "computed in any floating dtype of 16 bits at least"
ONE_EACH = "a number, or several"
ARRAY_LIKE = "an array, nested lists or a tensor of integers"
NO_BOUND = "no bound above"
ANY_FUNCTION = "what a function gives is checked when it is called"
OVERWRITTEN = "what it holds is overwritten"
WEIGHT = "weighs nothing"
NOISE = "ops.*noise*"
ATTACKS = (
    "ops.apgd_step ops.attack_loss ops.attack_step* ops.attack_watch ops.project "
    "ops.random_start ops.square* ops.hyperplane_projection"
)
COUNTS = "smoothing.*certificate"
TASKS = "smoothing.AdaptiveMix* smoothing.CropSelection* smoothing.Denoised* smoothing.Diffusion"
MODELLED = "smoothing.Smooth*.* masking.* density.* lipschitz.certify"

# (callables, arguments, labels, why)
OF_ARGUMENT = [
    # ---- tensors
    ("ops.* lipschitz.*", "x grad logits kernel features weight bias theta mask scale shift sigma "
     "mean std fill certificates", VALUES | {"tensor a 0-d nan"}, DATA),
    ("ops.* lipschitz.*", "x grad logits kernel features theta mask scale shift sigma mean std "
     "certificates weight", FLOATING, DTYPE),
    ("ops.*", "x grad logits kernel weight mask", META, "meta in, meta out"),
    ("ops.* lipschitz.*", "x grad logits kernel mask weight shift scale", SIZES, FREE),
    ("ops.*noise ops.grad_norm ops.maxmin ops.ablate_patches ops.conv_norm_bound", "x grad kernel",
     TENSOR, FREE),
    ("lipschitz.Normalize", "shift", {"tensor 2**40 elements"} | itself("of 2**40 rows"),
     "kept as it is"),
    ("lipschitz.MaxMin.forward lipschitz.Normalize* lipschitz.Abs.* lipschitz.Residual.* "
     "lipschitz.GroupSort.* lipschitz.L2NormPool2d.*", "x shift scale", TENSOR, FREE),
    ("lipschitz.Residual", "inner", CALLABLE, "lipschitz_bound refuses what it cannot bound"),
    ("lipschitz.hkr", "alpha margin", LARGE, NO_BOUND),
    (NOISE, "sigma scale", NUMBER_TENSOR, "a map that broadcasts to x"),
    ("ops.gaussian_noise", "sigma", itself("bool", "uint8", "int64", "of one fewer")
     | itself("of half the rows"), "a map of any dtype that broadcasts to x"),
    ("ops.*", "image_offset sample_offset", VALUES | itself("as a list"), "its value is not read"),
    ("ops.*", "out", VALUES | FLOATING, OVERWRITTEN),
    ("ops.add_pixel_votes", "counts chosen", VALUES, DATA),
    ("ops.*", "mask", itself("bool"), "a mask may be bool"),
    ("ops.apgd_step", "shown widths", VALUES, DATA),
    ("ops.apgd_step", "widths", ROWS | INTEGERS, "as many ages as have one"),
    ("ops.linear_logsumexp", "targets", VALUES, "a target that is no class is documented"),
    (MODELLED, "x image images inside outside", FINITE | ROWS | itself("with one more at the end",
     "of one fewer"), "of the model's taking"),
    ("smoothing.Smooth*.*", "x", FLOATING | {"tensor [0] * 4"}, DTYPE),
    ("smoothing.Smooth*.*", "x", itself("as an array"), "NumPy arrays are taken as they are"),
    ("smoothing.noise_augment", "x sigma mean std", VALUES | FLOATING | SIZES | TENSOR | {"0",
     "tensor a 0-d nan", "tensor a 0-d int"}, "of the op"),
    ("lipschitz.certify masking.*", "x image images", VALUES | FLOATING, "of the model's taking"),
    ("lipschitz.lipschitz_bound", "example", VALUES | FLOATING | SIZES | FINITE | ROWS
     | itself("of 2**40 rows"), "not read"),
    ("lipschitz.lipschitz_bound lipschitz.export", "model", {"a module"}, "has a bound"),
    ("masking.MaskedModel", "example", VALUES | ROWS | itself("with one more at the end",
     "of 2**40 rows"),
     "its values are not read"),
    ("masking.*", "mask z", FLOATING | SIZES | itself("bool"), "one for all, unused segments"),
    ("masking.* density.*", "attribution attributions", VALUES | FLOATING, "an order is all"),
    ("masking.*", "segments", LISTED | LAYOUT, ARRAY_LIKE),
    ("masking.explain_*", "segments", INTEGER | LARGE_INTEGER, "the side of blocks"),
    ("density.*", "baseline region", {"tensor a number"} | itself("of half the rows",
     "of one fewer"), "broadcasts to x"),
    ("masking.masked_accuracy_curve lipschitz.Certificate.*", "labels", VALUES,
     "a label that is no class is never met"),
    (COUNTS, "counts votes labels", LISTED | LAYOUT | SIZES | PAIR, ARRAY_LIKE),
    ("smoothing.Certificates.*", "labels", LISTED | LAYOUT | PAIR, ARRAY_LIKE),
    (COUNTS, "influence shifts", INTEGERS, ARRAY_LIKE),
    ("as_tensor", "array", VALUES | FLOATING | SIZES | TENSOR | META | LAYOUT | GRADIENT
     | NUMBER_TENSOR | itself("bool", "uint8", "int64", "float8", "complex", "sparse", "mkldnn",
     "quantized", "of 2**40 rows", "as an array") | {"a float array", "an int array",
     "tensor a 0-d nan", "tensor bool [2, 2]", "tensor int64 [3]", "tensor complex [3]",
     "tensor float8 [3]", "tensor sparse [2, 2]", "tensor quantized [3]", "tensor nested",
     "tensor 2**40 elements"}, "any tensor is one, and comes back"),
    ("ops.*", "y", VALUES | FLOATING | META | SIZES, "as x"),
    ("influence.Projector.* influence.TRAK.*", "x", VALUES | itself("with one more at the end"),
     "of the model's taking"),
    ("influence.Projector.project", "targets", VALUES | FLOATING | {"tensor bool [2, 2]"}
     | itself("bool", "uint8", "float8", "complex"), "of the function's taking"),
    ("influence.exact_linear", "x y test", FINITE | FLOATING, "computed in float64"),
    ("influence.exact_linear", "y", itself("bool", "uint8", "int64"), "labels of any dtype"),
    ("influence.exact_linear", "test", ROWS, FREE),
    ("influence.lds", "scores outputs", FINITE | FLOATING, "computed in float64"),
    (ATTACKS, "x grad loss best best_grad best_loss last_loss step_size rises checked x0 previous "
     "w b share eps topk momentum labels targets index variant restart age width ahead", VALUES,
     DATA),
    (ATTACKS, "step_size topk momentum eps share b", FLOATING, DTYPE),
    ("ops.random_start ops.square_start", "x0", FLOATING | SIZES, FREE),
    ("ops.spatial_warp", "angles shifts", VALUES | FLOATING | itself("of one more dimension"),
     "any numbers are a pose, for all images or for each"),
    ("ops.spatial_warp", "x", {"tensor [0] * 4"}, FREE),
    ("ops.perceptual_distance", "features reference weights", VALUES, DATA),
    ("density.*", "start", FINITE | ROWS | itself("with one more at the end", "of one fewer"),
     "of the model's taking"),
    ("density.gradient_matching_penalty", "x", VALUES | FLOATING | SIZES | TENSOR, FREE),
    ("density.group_accuracy density.spurious_gap", "predicted labels", VALUES,
     "a label that is no class is never met"),
    ("density.core_accuracy", "x mask", FINITE | FLOATING | {"tensor a number"} | itself("bool",
     "of half the rows", "of one fewer", "with an inf"), "a mask of any scale that broadcasts"),
    ("density.GroupDRO.forward", "losses", FINITE | FLOATING, DTYPE),
    ("density.spuriosity_ranking density.retrain_head", "features", FINITE | FLOATING
     | itself("of twice the columns", "with one more at the end"), "computed in float64"),
    ("density.retrain_head", "chosen", {"tensor int64 [3]"} | ROWS, "as many as one likes"),
    ("ops.linear_logsumexp", "bias", FLOATING, "a head may be narrower than its features"),
    ("ops.logsumexp", "logits", TENSOR, "of tokens"),
    ("density.*_penalty", "model", {"a function to [N, 1, 1]"}, "of tokens"),
    ("ops.attention", "q k v mask", VALUES | SIZES | TENSOR | {"tensor a number"}, DATA),
    ("ops.attention", "scale", {*NEGATIVE}, "of either sign"),
    ("*", "ignore_index", {"0", "2**31", *NEGATIVE}, "any integer"),
    # ---- numbers
    ("attacks.Spatial", "max_angle max_shift", {"0", *LARGE}, NO_BOUND),
    ("density.*", "group_counts train_counts", INTEGERS, "counts, in any sequence"),
    ("density.*", "eta adjustment noise step_size", LARGE | {"0"}, NO_BOUND),
    ("density.*", "bounds", PAIR | {"(-1, 2**64)"}, "the first below the other"),
    ("density.langevin_samples", "step_offset", {"0", "2**31"}, "below 2**40"),
    ("density.load_*", "transform", CALLABLE, ANY_FUNCTION),
    (ATTACKS, "step_size momentum rho", {"0"}, "0 is in the range"),
    (ATTACKS, "step_size", LARGE, NO_BOUND),
    (ATTACKS, "low", {"0", *NEGATIVE}, "of either sign"),
    (ATTACKS, "high", LARGE, NO_BOUND),
    ("*", "seed", {"0", "2**31", "2**62"}, "in [0, 2**64)"),
    ("*", "image_offset sample_offset step image_stride row_offset", {"0", "2**31"},
     "below 2**40"),
    ("influence.TRAK", "num_classes", LARGE_INTEGER, "what the model gives is checked in fit"),
    ("ops.random_projection_transposed", "rows", {"0"}, "none"),
    ("*", "batch_size step block width size k", LARGE_INTEGER, "what is too large is all there is"),
    ("*", "mean fill value", {"0", *NEGATIVE, *LARGE}, "of either sign"),
    ("*", "mean std fill value sigmas fractions", NUMBERS | NUMBER_TENSOR, ONE_EACH),
    ("smoothing.Smooth* lipschitz.LipConvNet", "mean std", FINITE | FLOATING | ROWS | LISTED
     | itself("int64", "of one fewer", "float8") | {"tensor [1] * 6", "tensor float8 [3]"},
     ONE_EACH),
    ("ops.gaussian_noise", "mean std", LISTED | itself("of one fewer"), ONE_EACH),
    ("masking.* density.*", "value sigmas fractions", {"(-1, 2**64)", "tensor float8 [3]"},
     ONE_EACH),
    ("smoothing.*Ablation", "fill", {"(-1, 2**64)"}, ONE_EACH),
    ("*", "radii", {"0", "inf", *NUMBER, *LARGE, *NUMBERS, *NUMBER_TENSOR, *TENSOR,
     "tensor float8 [3]"}, "any shape, infinity too"),
    ("*", "p", {*LARGE, "inf"}, "a norm's p may be as large"),
    ("*", "eps std sigma scale level bound beta gamma tau ridge kernel_width h step tol", LARGE,
     NO_BOUND),
    ("*", "eps radius gamma tau ridge theta degree iters padding num_samples k p_lower sigma scale "
     "target", {"0"}, "0 is in the range"),
    ("smoothing.*", "grid", PAIR | INTEGER, "a grid, and how much finer the noise is"),
    ("smoothing.*.on_grid", "grid", {"None"}, "the noise off any grid"),
    ("ops.*", "grid size stride positions padding dilation kernel kernel_size pads", PAIR
     | INTEGER | {"[[1], [2, 3]]"}, "an int, or two"),
    ("ops.*", "positions", {"0"}, "none"),
    ("ops.conv_spectral_bound", "stride", LARGE_INTEGER, NO_BOUND),
    ("smoothing.clopper_pearson_lower smoothing.gaussian_radius", "k n alpha p_lower sigma",
     NUMBER | NUMBERS | NUMBER_TENSOR | TENSOR | {"2**31"}, "scalars and arrays broadcast"),
    ("lipschitz.LipConvNet", "train_degree tol recompute", NUMBER | INTEGER | {"True",
     "np.bool_(True)"}, "of SOC"),
    ("lipschitz.OrthogonalConv*", "kernel_size stride dilation padding", PAIR,
     "an int, or one a dimension"),
    # ---- others
    ("*", "dtype", {"torch.float32"}, "is one"),
    ("attacks.*", "model attack features", CALLABLE, ANY_FUNCTION),
    ("attacks.*", "alpha eta", LARGE, NO_BOUND),
    ("attacks.*", "beta", {"0"}, "0 is in the range"),
    ("attacks.*", "bs", LARGE_INTEGER, "what is too large is all there is"),
    ("attacks.*", "predict", {"{}"}, "no arguments"),
    ("attacks.FAB", "targets", {"0"}, "without targets"),
    ("influence.TRAK.fit", "folder", {"'rubbish'"}, "a name of a folder"),
    ("attacks.*", "mean std", {"tensor float8 [3]"}, ONE_EACH),
    ("attacks.*", "x images", itself("with one more at the end"), "of the model's taking"),
    ("lipschitz.*", "device", {"torch.device('meta')"}, "is one"),
    ("smoothing.Smooth* density.PenaltyOp masking.replaced", "base_classifier penalty model output",
     CALLABLE, ANY_FUNCTION),
    (TASKS, "model standard mixing denoiser classifier eps_model", CALLABLE, ANY_FUNCTION),
    (TASKS, "x", VALUES | FLOATING | SIZES | {"tensor [0] * 4"}, "of the model's taking"),
    (TASKS, "size temperature", PAIR | LARGE, "a side, or two; no bound above"),
    ("smoothing.great_score", "probabilities", FLOATING | SIZES, FREE),
    ("smoothing.losses.*", "logits mixed_logits", VALUES, DATA),
    ("smoothing.losses.*", "logits mixed_logits share", FLOATING, DTYPE),
    ("smoothing.losses.*", "lam eta", {"0"} | LARGE, "weighs nothing, or as much as one likes"),
    ("smoothing.losses.consistency smoothing.losses.smooth_adv smoothing.losses.macer", "logits",
     SIZES, FREE),
    ("density.PenaltyOp masking.MaskedModel", "model", {"a module"}, ANY_FUNCTION),
    ("density.marginal_density_penalty", "model", CALLABLE, "not called: logits are given"),
    ("smoothing.Smooth*.* influence.TRAK.fit", "progress", CALLABLE | {"True"},
     "is told, and not asked"),
    ("masking.explain_occlusion", "size stride", PAIR, "an int, or two"),
    ("masking.masked_accuracy_curve", "output", CALLABLE, ANY_FUNCTION),
    ("masking.masked_accuracy_curve", "fills", {"{}"}, "none"),
    ("smoothing.Certificates.to_tsv", "path", {"'rubbish'"}, "a name of a file"),
    ("smoothing.Result.load", "path", {"'rubbish'"}, "a name of a file, which save has written"),
    ("smoothing.*", "grid", {"3", "np.int64(3)"} | PAIR, "levels, and how much finer noise is"),
    ("smoothing.Result.save", "path", {"'rubbish'"}, "a name of a file"),
]  # fmt: skip


def matches(name, argument, label, callables, arguments, labels, *_):
    return (
        label in labels
        and argument in arguments.split()
        and any(fnmatch(name, pattern) for pattern in callables.split())
    )


def why_accepted(name, argument, label, parameter):
    """The reason, or None."""
    kind = "" if parameter is None else f"{parameter.annotation} {parameter.default}"
    for word, (labels, why) in OF_KIND.items():
        if word in kind and label in labels:
            return why
    return next((e[3] for e in OF_ARGUMENT if matches(name, argument, label, *e)), None)


# ---- errors that name another argument -----------------------------------------------------------

OTHERS = {
    ("density.GroupDRO", "num_groups"): "group_counts",
    ("density.group_accuracy", "num_groups"): "train_counts",
    ("smoothing.message_ensemble_certificate", "num_agents"): "counts",
    ("smoothing.message_ensemble_certificate", "k"): "counts",
    ("smoothing.finite_aggregation_certificate", "num_classes"): "votes",
    ("lipschitz.Normalize.forward", "x"): "shift",
    ("ops.ablate_patches", "positions"): "out",
    ("ops.ablate_pixels", "num_samples"): "out",
    ("ops.add_pixel_votes", "chosen"): "counts",
    ("ops.gaussian_noise", "num_samples"): "out",
    ("ops.masked_conv2d", "groups"): "weight",
}
