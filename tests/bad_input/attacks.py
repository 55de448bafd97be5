"""The calls of the attacks family."""

from bad_input.inputs import call, images, labels, method, network, rand
from robustcore import attacks

OPTIONS = dict(seed=0, mean=None, std=None, batch_size=3, grid=None, predict=None)
EOT = dict(eot=1, **OPTIONS)
ATTACKS = {
    "PGD": dict(
        alpha=None, steps=2, random_start=True, restarts=1, loss="ce", targeted=False, **EOT
    ),
    "FGSM": dict(loss="ce", targeted=False, **EOT),
    "APGD": dict(steps=2, restarts=1, loss="ce", larger_radii=False, targeted=False, **EOT),
    "APGDT": dict(steps=2, targets=2, restarts=1, larger_radii=False, **EOT),
    "FAB": dict(steps=2, targets=2, restarts=1, alpha_max=0.1, eta=1.05, beta=0.9, **EOT),
    "Square": dict(queries=3, p_init=0.8, restarts=1, loss="margin", targeted=False, **EOT),
    "AutoAttack": dict(version="rand", **OPTIONS),
}


def autoattack():
    return attacks.AutoAttack(network(), eps=0.1, version="rand", seed=0)


def pgd():
    return attacks.PGD(network(), 0.1, steps=1, seed=0)


def feature_net():
    return lambda x: [x]


EXAMPLES = {
    **{
        f"attacks.{kind}": call(
            getattr(attacks, kind), model=network, eps=0.1, norm="Linf", **options
        )
        for kind, options in ATTACKS.items()
    },
    "attacks.Spatial": call(
        attacks.Spatial, model=network, max_angle=10.0, max_shift=1.0, search="random", angles=2,
        shifts=2, tries=2, loss="ce", targeted=False, eot=1, seed=0, mean=None, std=None,
        batch_size=3, predict=None,
    ),
    **{
        f"attacks.{kind}": call(
            getattr(attacks, kind), model=network, features=feature_net, eps=0.1, steps=2,
            weights=lambda: [rand(6)], loss="margin", targeted=False, eot=1, seed=0, mean=None,
            std=None, batch_size=3, predict=None, **options,
        )
        for kind, options in {
            "PerceptualLPA": dict(searches=2, fast=False),
            "PerceptualPGD": dict(alpha=None, iterations=2),
        }.items()
    },
    "attacks.APGD.__call__": method(pgd, "__call__", images=images, labels=labels),
    "attacks.APGD.run": method(
        pgd, "run", images=images, labels=labels, image_offset=0, image_stride=1
    ),
    "attacks.AutoAttack.evaluate": method(autoattack, "evaluate", x=images, y=labels, bs=2),
    "attacks.AutoAttack.run_standard_evaluation": method(
        autoattack, "run_standard_evaluation", x=images, y=labels, bs=2
    ),
    **{
        f"attacks.adversarial_training_loss{kind}": call(
            attacks.adversarial_training_loss, model=network, x=images, y=labels, attack=pgd,
            kind=kind.removeprefix("/") or "trades", beta=6.0,
        )
        for kind in ("", "/pgd", "/mart")
    },
}  # fmt: skip
