"""Networks as pure functions: `MODELS[name](input_shape, num_classes, **options)` is a `Model`."""

from collections.abc import Callable

from jaxdist.models.batch_norm import reestimate
from jaxdist.models.functional import Model, functional
from jaxdist.models.isqrt_cov import ISqrtCov
from jaxdist.models.lenet import cnn, lenet5
from jaxdist.models.mlp import mlp
from jaxdist.models.resnet import resnet18, resnet20, resnet50
from jaxdist.models.transformer import transformer
from jaxdist.models.vgg import vgg16
from jaxdist.models.wide_resnet import wide_resnet

MODELS: dict[str, Callable[..., Model]] = {
    factory.__name__: factory
    for factory in (
        mlp,
        lenet5,
        cnn,
        resnet20,
        resnet18,
        resnet50,
        vgg16,
        wide_resnet,
        transformer,
    )
}

__all__ = ["MODELS", "ISqrtCov", "Model", "functional", "reestimate", *MODELS]
