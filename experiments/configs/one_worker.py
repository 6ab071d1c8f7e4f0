"""What the configurations of one worker share: flat minima, schedules and losses compared."""

from experiments.configs.recipes import FASHION_MNIST, sgd
from jaxdist.config import Augment, Config, component

RULE = "average_gradients"
"""Of one worker it is the optimizer alone."""


def one_worker(data: str, gradient: str, **options) -> Config:
    """MNIST, Fashion-MNIST or CIFAR-10 without augmentation, as in the paper of LPF-SGD.

    Read in the official code and the supplement: LeNet on MNIST and ResNet-18 on CIFAR-10, batch
    128, weight decay 5e-4, momentum 0.9, the rates, their drops and the epochs. Which LeNet was not
    read; ours is LeNet-5. Fashion-MNIST has MNIST's values with 15 epochs in place of 150.
    """
    cifar = data == "cifar10"
    idx = component("data", "idx", path=FASHION_MNIST)
    return Config(
        data=idx if data == "fashion_mnist" else component("data", "tfds", name=data),
        model=component("model", "resnet18" if cifar else "lenet5"),
        rule=component("rule", RULE),
        gradient=component("gradient", gradient, **options),
        optimizer=component("optimizer", "sgd", nesterov=False, weight_decay=5e-4),
        schedule=component("schedule", "drops", at=(0.5, 0.6) if cifar else (1 / 3, 2 / 3)),
        workers=1,
        batch_size=128,
        learning_rate=0.1 if cifar else 0.01,
        epochs={"mnist": 150, "fashion_mnist": 15, "cifar10": 200}[data],
        batch_norm="local",
        eval_every=391,
        checkpoint_every=3910,
    )


def augmented(gradient: str, **options) -> Config:
    """CIFAR-10 with crops, flips and cutout, as in the paper of LPF-SGD: a WideResNet-16-8.

    Read in the official code and the supplement: the model, batch 128, learning rate 0.1, drops to
    a fifth at epochs 60, 120 and 160 of 200, weight decay 5e-4, Nesterov momentum 0.9. The side of
    cutout, 16, is from memory.
    """
    return Config(
        data=component("data", "tfds", name="cifar10"),
        model=component("model", "wide_resnet", depth=16, width=8),
        rule=component("rule", RULE),
        gradient=component("gradient", gradient, **options),
        optimizer=sgd(RULE, weight_decay=5e-4),
        schedule=component("schedule", "drops", at=(0.3, 0.6, 0.8), factor=0.2),
        augment=Augment(crop=4, flip=True, cutout=16),
        workers=1,
        batch_size=128,
        learning_rate=0.1,
        epochs=200,
        batch_norm="local",
        eval_every=390,
        checkpoint_every=3900,
    )


def self_dropping(data: str, schedule: str, drop: str = "none", **options) -> Config:
    """AutoDrop's ResNet-18 on CIFAR-10, or the bundled digits with the same values: one worker.

    Read in the official code: batch 128, learning rate 0.05, Nesterov momentum 0.9, weight decay
    5e-4, 200 epochs; for a comparison drops to a fifth at epochs 60, 120 and 160. That its images
    are cropped and flipped is from memory.
    """
    cifar = data == "cifar10"
    at = {"at": (0.3, 0.6, 0.8), "factor": 0.2} if schedule == "drops" else {}
    return Config(
        data=component("data", "tfds", name="cifar10") if cifar else component("data", "digits"),
        model=component("model", "resnet18" if cifar else "cnn"),
        rule=component("rule", RULE),
        optimizer=sgd(RULE, weight_decay=5e-4),
        schedule=component("schedule", schedule, **at),
        drop=component("drop", drop, **options),
        augment=Augment(crop=4, flip=True) if cifar else Augment(),
        workers=1,
        batch_size=128,
        learning_rate=0.05,
        epochs=200,
        batch_norm="local",
        eval_every=391 if cifar else 110,
        checkpoint_every=3910 if cifar else 1100,
    )


def wrong_labels(loss: str, **options) -> Config:
    """The bundled digits with 40 % wrong labels: one worker, the CNN of two convolutions.

    One low rate for all losses: a penalty makes gradients larger, and at 0.05 some networks die.
    """
    return Config(
        data=component("data", "digits"),
        model=component("model", "cnn"),
        rule=component("rule", RULE),
        optimizer=sgd(RULE),
        loss=component("loss", loss, **options),
        label_noise=0.4,
        workers=1,
        batch_size=128,
        learning_rate=0.0125,
        epochs=100,
        eval_every=110,
        checkpoint_every=1100,
    )
