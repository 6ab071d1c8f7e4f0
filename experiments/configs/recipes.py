"""What the configurations of one data set share; each file adds its rule."""

import dataclasses

from jaxdist.config import Augment, Clock, Component, Config, component
from jaxdist.rules import row

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts its files."""


def digits(rule: str, **options) -> Config:
    """The bundled digits: 8 workers, a multilayer perceptron."""
    return Config(
        data=component("data", "digits"),
        model=component("model", "mlp"),
        rule=component("rule", rule, **options),
        optimizer=sgd(rule),
        workers=8,
        batch_size=16,
        learning_rate=0.05,
        epochs=40,
        eval_every=44,
    )


def mnist(rule: str, **options) -> Config:
    """MNIST: 8 workers, the CNN of two convolutions."""
    return Config(
        data=component("data", "tfds", name="mnist"),
        model=component("model", "cnn"),
        rule=component("rule", rule, **options),
        optimizer=sgd(rule),
        workers=8,
        batch_size=32,
        learning_rate=0.05,
        epochs=10,
        local="unroll",
        eval_every=234,
    )


def fashion_mnist(rule: str, **options) -> Config:
    """Fashion-MNIST: 8 workers, LeNet-5."""
    return Config(
        data=component("data", "idx", path=FASHION_MNIST),
        model=component("model", "lenet5"),
        rule=component("rule", rule, **options),
        optimizer=sgd(rule),
        workers=8,
        batch_size=32,
        learning_rate=0.05,
        epochs=10,
        local="unroll",
        eval_every=234,
    )


def fashion_mnist_skewed(rule: str, **options) -> Config:
    """Fashion-MNIST as above, with few classes in each of the 8 workers' shards.

    Plain SGD, as in the AL-DSGD authors' code; at a rate of 0.1 D-PSGD diverges with two of three
    seeds (see experiments/RESULTS.md).
    """
    return dataclasses.replace(
        fashion_mnist(rule, **options),
        shards=component("shards", "dirichlet", alpha=0.1, minimum=32),
        optimizer=component("optimizer", "sgd", momentum=0.0),
        learning_rate=0.03,
    )


def straggler(rule: str, *, asynchronous: bool, **options) -> Config:
    """Fashion-MNIST on a virtual clock, with one of 8 workers three times as slow as the others.

    A step takes 1 s with 10% of spread, 3 s at worker 7; an all-reduce of the model takes 0.57 s.
    Every run has the same 1,170 virtual seconds, 5 epochs' steps of a worker that never waits.
    """
    return dataclasses.replace(
        fashion_mnist(rule, **options),
        clock=Clock(
            step_seconds=1.0,
            sigma=0.1,
            stragglers=((7, 3.0),),
            latency=0.01,
            bandwidth=1e6,
            budget=1170.0,
        ),
        asynchronous=asynchronous,
        eval_every=72 if asynchronous else 24,
    )


def cifar10(rule: str, **options) -> Config:
    """CIFAR-10 as in the sample script of the GRAWA authors: 4 workers, ResNet-20.

    Read there: the model, 4 workers, batch 128 a worker, learning rate 0.1, Nesterov momentum 0.9,
    weight decay 1e-4. The script trains for 15 minutes and drops the rate by 10 after 500 seconds;
    the 160 epochs and the drops at half and three quarters are ours.
    """
    return Config(
        data=component("data", "tfds", name="cifar10"),
        model=component("model", "resnet20"),
        rule=component("rule", rule, **options),
        optimizer=sgd(rule, weight_decay=1e-4),
        schedule=component("schedule", "drops"),
        augment=Augment(crop=4, flip=True),
        workers=4,
        batch_size=128,
        learning_rate=0.1,
        epochs=160,
        batch_norm="reestimate",
        eval_every=970,
        log_every=97,
        checkpoint_every=970,
    )


def cifar10_decentralized(rule: str, **options) -> Config:
    """CIFAR-10 as in the code of the AL-DSGD authors: 8 workers, a ResNet-50.

    Read there: 8 workers, batch 16 a worker, learning rate 0.4, plain SGD, weight decay 5e-4, 200
    epochs with drops to a tenth at 100 and 150, random crops and flips, and that the model is a
    ResNet-50, of which the file was not read: ours may be wider. There each worker starts from
    parameters of its own, here all start from the same.
    """
    return Config(
        data=component("data", "tfds", name="cifar10"),
        model=component("model", "resnet50", stem="cifar"),
        rule=component("rule", rule, **options),
        optimizer=component("optimizer", "sgd", momentum=0.0, weight_decay=5e-4),
        schedule=component("schedule", "drops"),
        augment=Augment(crop=4, flip=True),
        workers=8,
        batch_size=16,
        learning_rate=0.4,
        epochs=200,
        batch_norm="reestimate",
        eval_every=1950,
        log_every=195,
        checkpoint_every=1950,
    )


def cifar100(rule: str, **options) -> Config:
    """CIFAR-100: 4 workers, WideResNet-28-10.

    The model, and that the rate drops to a fifth, were read in the code of the GRAWA authors, which
    does it once, at epoch 160; the 200 epochs and the drops at 30, 60 and 80 % are ours.
    """
    return Config(
        data=component("data", "tfds", name="cifar100"),
        model=component("model", "wide_resnet"),
        rule=component("rule", rule, **options),
        optimizer=sgd(rule, weight_decay=5e-4),
        schedule=component("schedule", "drops", at=(0.3, 0.6, 0.8), factor=0.2),
        augment=Augment(crop=4, flip=True),
        workers=4,
        batch_size=128,
        learning_rate=0.1,
        epochs=200,
        batch_norm="reestimate",
        eval_every=970,
        log_every=97,
        checkpoint_every=970,
    )


def imagenet(model: str, rule: str, **options) -> Config:
    """ImageNet at 224 x 224: 8 workers with 32 examples each.

    The drops every third of the run follow the code of the GRAWA authors (every 35 epochs for
    ResNet-50); the rest is ours.
    """
    data = component(
        "data", "tfds", name="imagenet2012", test_split="validation", size=224, in_memory=False
    )
    return Config(
        data=data,
        model=component("model", model, stem="imagenet"),
        rule=component("rule", rule, **options),
        optimizer=sgd(rule, weight_decay=1e-4),
        schedule=component("schedule", "drops", warmup=0.05, at=(1 / 3, 2 / 3)),
        augment=Augment(flip=True),
        workers=8,
        batch_size=32,
        learning_rate=0.1,
        epochs=105,
        batch_norm="reestimate",
        eval_every=5004,
        log_every=100,
        checkpoint_every=5004,
    )


def transformer(rule: str, **options) -> Config:
    """A small Transformer: 8 workers predict the next grey value of the bundled digits."""
    return Config(
        data=component("data", "digit_sequences"),
        model=component("model", "transformer", width=64, depth=2),
        task=component("task", "language_model"),
        rule=component("rule", rule, **options),
        optimizer=component("optimizer", "adamw"),
        schedule=component("schedule", "cosine", warmup=0.1),
        workers=8,
        batch_size=16,
        learning_rate=3e-3,
        epochs=20,
        eval_every=44,
    )


def sgd(rule: str, **options) -> Component:
    """Nesterov momentum 0.9, or plain SGD for the rule that has a momentum of its own."""
    return component("optimizer", "sgd", momentum=0.0 if row(rule).momentum else 0.9, **options)
