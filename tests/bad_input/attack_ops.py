"""Valid arguments of what is public of attacks, as in examples.py."""

from bad_input.inputs import call, images, labels, rand
from robustcore import ops

WATCHED = dict(
    loss=lambda: rand(2), ahead=lambda: rand(2), counts=lambda: rand(2) > 0.5, best=images,
    best_grad=images, best_loss=lambda: rand(2),
    **{name: lambda: rand(2) > 0.5
       for name in ("found", "fooled", "zero", "nan_grad", "nan_logits")},
    age=labels,
)  # fmt: skip

EXAMPLES = {
    "ops.apgd_step": call(
        ops.apgd_step, x=images, shown=images, grad=images, x0=images, previous=images, **WATCHED,
        last_loss=lambda: rand(2), step_size=lambda: rand(2), rises=lambda: rand(2),
        checked=lambda: rand(2), cut=lambda: rand(2) > 0.5, widths=labels, norm="linf", eps=0.5,
        rho=0.75, momentum=0.75,
    ),
    "ops.attack_loss": call(
        ops.attack_loss, logits=lambda: rand(2, 5), labels=labels, targets=labels, loss="dlr",
        lowered=False,
    ),
    "ops.attack_step": call(
        ops.attack_step, x=images, grad=images, x0=images, norm="l2", eps=0.5, step_size=0.1,
        low=0.0, high=1.0, topk=0.5, momentum=0.75, previous=images, out=None,
    ),
    "ops.attack_step/tensors": call(
        ops.attack_step, x=images, grad=images, x0=images, norm="linf", eps=lambda: rand(2),
        step_size=lambda: rand(2), topk=lambda: rand(2), momentum=lambda: rand(2), previous=images,
        out=images,
    ),
    "ops.attack_watch": call(
        ops.attack_watch, x=images, grad=images, **WATCHED,
    ),
    "ops.hyperplane_projection": call(
        ops.hyperplane_projection, x=images, w=images, b=lambda: rand(2), norm="l2", low=0.0,
        high=1.0,
    ),
    "ops.perceptual_distance": call(
        ops.perceptual_distance, features=lambda: [rand(2, 3, 4, 4)],
        reference=lambda: [rand(2, 3, 4, 4)], weights=lambda: [rand(3)],
    ),
    "ops.project": call(
        ops.project, x=images, x0=images, norm="l1", eps=0.5, low=0.0, high=1.0, out=None
    ),
    "ops.random_start": call(
        ops.random_start, x0=images, index=labels, restart=labels, norm="linf", eps=0.1, seed=0,
        low=0.0, high=1.0,
    ),
    "ops.spatial_warp": call(
        ops.spatial_warp, x=images, angles=lambda: rand(3), shifts=lambda: rand(3, 2)
    ),
    "ops.square_propose": call(
        ops.square_propose, best=images, x0=images, index=labels, variant=labels, age=labels,
        share=lambda: rand(2), norm="l2", eps=0.1, seed=0, low=0.0, high=1.0,
    ),
    "ops.square_start": call(
        ops.square_start, x0=images, index=labels, variant=labels, norm="linf", eps=0.1, seed=0,
        low=0.0, high=1.0,
    ),
}  # fmt: skip
