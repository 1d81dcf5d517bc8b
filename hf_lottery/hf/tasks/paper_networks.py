"""The small image networks of the papers as ``PreTrainedModel``: LeNet, CIFAR ResNet, CIFAR VGG and MLP-Mixer.

Importing this module registers them, so that ``AutoModelForImageClassification`` reads what the recipes save. Every
network is a trunk (``model.base_model``, which gives pooled features) and one linear ``classifier`` outside it. Weights
are initialized the same way in all four: convolutions He normal (fan-in, for the ReLU after them), linear layers Glorot
normal, biases 0, norms at 1 and 0.

Example:
    >>> model = LeNetForImageClassification(LeNetConfig(hidden_sizes=[300, 100], image_size=28, num_labels=10))
    >>> f"{model.num_parameters():,}"
    '266,610'
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention, ImageClassifierOutputWithNoAttention
from transformers.utils.generic import can_return_tuple


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """An image size as (height, width), in pixels: one number is a square, a 1-D signal is ``(1, length)``."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


class _ImageConfig(PreTrainedConfig):
    """The fields that the configurations of the four networks share.

    Args:
        num_channels: Channels of the input.
        image_size: Side of a square input, or (height, width). The convolutional networks accept any size, because
            they average over the positions left; to the fully connected ones it is part of the architecture.
    """

    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 32

    def __post_init__(self, **kwargs: Any) -> None:
        sides = height_and_width(getattr(self, "kernel_size", 3))
        if any(side < 1 or side % 2 == 0 for side in sides):
            raise ValueError(f"kernel_size must have odd sides; received {self.kernel_size}. Choose 3 or (1, 3).")
        depths, sizes = getattr(self, "depths", None), getattr(self, "hidden_sizes", None)
        if depths is not None and sizes is not None and len(depths) != len(sizes):
            raise ValueError(
                f"depths must have one entry per stage of hidden_sizes {sizes}; received {depths}. Make both as long."
            )
        super().__post_init__(**kwargs)


class _ImageModel(PreTrainedModel):
    """Base of trunks and classifiers: initializes the weights."""

    main_input_name = "pixel_values"
    input_modalities = "image"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Unlike `normal_` and the like of a tensor, the functions of `init` skip what a checkpoint has filled.
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.xavier_normal_(module.weight)
        else:
            super()._init_weights(module)
            return
        if module.bias is not None:
            init.zeros_(module.bias)


class _ImageTrunk(_ImageModel):
    """Pixels to features; subclasses set ``num_features`` and write ``encode``."""

    num_features: int

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden state, and features pooled from it of shape [batch, num_features]."""
        raise NotImplementedError

    @can_return_tuple
    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPoolingAndNoAttention:
        """Compute the last hidden state and pooled features of images [batch, num_channels, height, width]."""
        hidden, pooled = self.encode(pixel_values)
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=hidden, pooler_output=pooled)


class _ImageClassifier(_ImageModel):
    """A trunk and a linear classifier; subclasses name the trunk's class."""

    trunk_class: type[_ImageTrunk]
    # forward() takes the mean over the batch, so the Trainer has to divide by its accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: Any):
        super().__init__(config)
        trunk = self.trunk_class(config)
        setattr(self, self.base_model_prefix, trunk)
        self.classifier = nn.Linear(trunk.num_features, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: Floats of shape [batch, num_channels, height, width].
            labels: Class numbers of shape [batch]; with them the output has the mean cross-entropy as ``loss``.

        Returns:
            ``logits`` of shape [batch, num_labels], and ``loss``.
        """
        logits = self.classifier(self.base_model(pixel_values, return_dict=True).pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class LeNetConfig(_ImageConfig):
    """A fully connected network on flattened pixels; LeNet-300-100 by default.

    Args:
        width: Multiplies the units of every hidden layer.
        hidden_sizes: Units of each hidden layer at width 1.
    """

    model_type = "lenet"

    width: int = 1
    num_channels: int = 1
    image_size: int | list[int] | tuple[int, ...] = 28
    hidden_sizes: list[int] | tuple[int, ...] = (300, 100)


class LeNetModel(_ImageTrunk):
    """The hidden layers: flatten, then linear and ReLU for each of ``hidden_sizes`` times ``width``."""

    config_class = LeNetConfig
    base_model_prefix = "lenet"

    def __init__(self, config: LeNetConfig):
        super().__init__(config)
        height, width = height_and_width(config.image_size)
        sizes = [config.num_channels * height * width, *(config.width * size for size in config.hidden_sizes)]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))
        self.num_features = sizes[-1]
        self.post_init()

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        hidden = pixel_values.flatten(1)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return hidden, hidden


class LeNetForImageClassification(_ImageClassifier):
    """LeNet-300-100 and other fully connected networks (LeCun et al., 1998), with a classifier."""

    config_class = LeNetConfig
    base_model_prefix = "lenet"
    trunk_class = LeNetModel


class ResNetCifarConfig(_ImageConfig):
    """A residual network for small images; ResNet-20 by default.

    Args:
        width: Multiplies the channels of every stage: the w of "ResNet20 x w".
        hidden_sizes: Channels of each stage at width 1.
        depths: Blocks in each stage; every stage but the first halves the resolution.
        kernel_size: Odd side of every kernel, or (height, width). Use ``(1, 3)`` for a 1-D signal: a square kernel
            would have rows that read padding alone, so they would never train and still be counted.
    """

    model_type = "resnet_cifar"

    width: int = 1
    kernel_size: int | list[int] | tuple[int, ...] = 3
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32, 64)
    depths: list[int] | tuple[int, ...] = (3, 3, 3)


def _same_size(inputs: int, outputs: int, kernel: Sequence[int], stride: int = 1) -> nn.Conv2d:
    """Make a convolution without bias, padded so that only the stride makes its output smaller."""
    height, width = kernel
    padding = (height // 2, width // 2)
    return nn.Conv2d(inputs, outputs, (height, width), stride=stride, padding=padding, bias=False)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: int):
        super().__init__()
        self.conv1 = _same_size(inputs, outputs, kernel, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _same_size(outputs, outputs, kernel)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs or stride != 1:
            shortcut = _same_size(inputs, outputs, kernel, stride)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(hidden)))))
        return F.relu(residual + self.shortcut(hidden))


class ResNetCifarModel(_ImageTrunk):
    """Stem, stages of basic blocks, mean over positions."""

    config_class = ResNetCifarConfig
    base_model_prefix = "resnet"

    def __init__(self, config: ResNetCifarConfig):
        super().__init__(config)
        channels = [config.width * size for size in config.hidden_sizes]
        kernel = height_and_width(config.kernel_size)
        self.stem = _same_size(config.num_channels, channels[0], kernel)
        self.norm = nn.BatchNorm2d(channels[0])
        self.stages = nn.ModuleList()
        for stage, (outputs, depth) in enumerate(zip(channels, config.depths, strict=True)):
            before = [channels[max(stage - 1, 0)]] + [outputs] * (depth - 1)
            strides = [1 if stage == 0 else 2] + [1] * (depth - 1)
            blocks = (
                _BasicBlock(inputs, outputs, kernel, stride) for inputs, stride in zip(before, strides, strict=True)
            )
            self.stages.append(nn.Sequential(*blocks))
        self.num_features = channels[-1]
        self.post_init()

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.norm(self.stem(pixel_values)))
        for stage in self.stages:
            hidden = stage(hidden)
        return hidden, hidden.mean((2, 3))


class ResNetCifarForImageClassification(_ImageClassifier):
    """ResNet-20 x width as used by Adnan et al. (ICML 2025).

    Reference: He et al., 2016, arXiv 1512.03385, section 4.2. Difference, following Adnan et al., arXiv 2505.05143:
    the shortcut between stages is a 3x3 convolution with batch norm (292,954 parameters, not 269,722).
    """

    config_class = ResNetCifarConfig
    base_model_prefix = "resnet"
    trunk_class = ResNetCifarModel


class VGGCifarConfig(_ImageConfig):
    """A VGG without batch norm; VGG-11 by default.

    Args:
        width: Multiplies the channels of every stage.
        hidden_sizes: Channels of each stage at width 1; a stage ends with a 2x2 maximum.
        depths: Convolutions in each stage.
    """

    model_type = "vgg_cifar"

    width: int = 1
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: list[int] | tuple[int, ...] = (1, 1, 2, 2, 2)


class VGGCifarModel(_ImageTrunk):
    """Convolutions with bias and ReLU, a maximum after each stage, mean over the positions left."""

    config_class = VGGCifarConfig
    base_model_prefix = "vgg"

    def __init__(self, config: VGGCifarConfig):
        super().__init__(config)
        layers: list[nn.Module] = []
        inputs = config.num_channels
        for outputs, depth in zip(config.hidden_sizes, config.depths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, config.width * outputs, 3, padding=1), nn.ReLU()]
                inputs = config.width * outputs
            # Rounding up changes nothing at 32 pixels and lets 8 or 28 pixels pass five stages.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.num_features = inputs
        self.post_init()

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.features(pixel_values)
        return hidden, hidden.mean((2, 3))


class VGGCifarForImageClassification(_ImageClassifier):
    """VGG-11 without batch norm and with a single linear classifier, as used by Adnan et al. (ICML 2025).

    Reference: Simonyan and Zisserman, 2015, arXiv 1409.1556, configuration A; its three linear layers are one here.
    """

    config_class = VGGCifarConfig
    base_model_prefix = "vgg"
    trunk_class = VGGCifarModel


class MLPMixerConfig(_ImageConfig):
    """A small MLP-Mixer.

    Args:
        patch_size: Side of a patch, or (height, width); must divide the image size.
        hidden_size: Channels of a patch.
        num_layers: Number of mixer layers.
        tokens_mlp_dim: Hidden units of the MLPs that mix patches.
        channels_mlp_dim: Hidden units of the MLPs that mix channels.
    """

    model_type = "mlp_mixer"

    patch_size: int | list[int] | tuple[int, ...] = 4
    hidden_size: int = 128
    num_layers: int = 4
    tokens_mlp_dim: int = 64
    channels_mlp_dim: int = 512

    def __post_init__(self, **kwargs: Any) -> None:
        sides = zip(height_and_width(self.image_size), height_and_width(self.patch_size), strict=True)
        if any(patch < 1 or side % patch for side, patch in sides):
            raise ValueError(
                f"patch_size must divide image_size {self.image_size}; received {self.patch_size}. "
                "Choose a divisor, or a pair (height, width) of divisors."
            )
        super().__post_init__(**kwargs)


class _MixerLayer(nn.Module):
    def __init__(self, config: MLPMixerConfig, patches: int):
        super().__init__()
        self.token_norm = nn.LayerNorm(config.hidden_size)
        self.token_fc1 = nn.Linear(patches, config.tokens_mlp_dim)
        self.token_fc2 = nn.Linear(config.tokens_mlp_dim, patches)
        self.channel_norm = nn.LayerNorm(config.hidden_size)
        self.channel_fc1 = nn.Linear(config.hidden_size, config.channels_mlp_dim)
        self.channel_fc2 = nn.Linear(config.channels_mlp_dim, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = self.token_norm(hidden).transpose(1, 2)
        hidden = hidden + self.token_fc2(F.gelu(self.token_fc1(tokens))).transpose(1, 2)
        return hidden + self.channel_fc2(F.gelu(self.channel_fc1(self.channel_norm(hidden))))


class MLPMixerModel(_ImageTrunk):
    """Patches, mixer layers, layer norm, mean over patches."""

    config_class = MLPMixerConfig
    base_model_prefix = "mixer"

    def __init__(self, config: MLPMixerConfig):
        super().__init__(config)
        (height, width), patch = height_and_width(config.image_size), height_and_width(config.patch_size)
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch)
        count = (height // patch[0]) * (width // patch[1])
        self.layers = nn.ModuleList(_MixerLayer(config, count) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.num_features = config.hidden_size
        self.post_init()

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.norm(hidden)
        return hidden, hidden.mean(1)


class MLPMixerForImageClassification(_ImageClassifier):
    """MLP-Mixer without dropout and stochastic depth. Reference: Tolstikhin et al., 2021, arXiv 2105.01601."""

    config_class = MLPMixerConfig
    base_model_prefix = "mixer"
    trunk_class = MLPMixerModel


CONFIGS = (LeNetConfig, ResNetCifarConfig, VGGCifarConfig, MLPMixerConfig)
TRUNKS = (LeNetModel, ResNetCifarModel, VGGCifarModel, MLPMixerModel)
CLASSIFIERS = (
    LeNetForImageClassification,
    ResNetCifarForImageClassification,
    VGGCifarForImageClassification,
    MLPMixerForImageClassification,
)

for _config, _trunk, _classifier in zip(CONFIGS, TRUNKS, CLASSIFIERS, strict=True):
    # exist_ok, because a notebook may reload this module.
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _trunk, exist_ok=True)
    AutoModelForImageClassification.register(_config, _classifier, exist_ok=True)
