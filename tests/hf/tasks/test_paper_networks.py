"""The networks of the papers: shapes, sizes, starts, and what saving and Auto classes promise."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, Trainer, TrainingArguments

from hf_lottery.hf.tasks import paper_networks

SMALL = {
    "lenet": paper_networks.LeNetConfig(hidden_sizes=(20, 10), num_channels=2, image_size=8, num_labels=4),
    "resnet_cifar": paper_networks.ResNetCifarConfig(hidden_sizes=[4, 8], depths=[1, 2], num_channels=2, num_labels=4),
    "vgg_cifar": paper_networks.VGGCifarConfig(hidden_sizes=[4, 8], depths=[1, 2], num_channels=2, num_labels=4),
    "mlp_mixer": paper_networks.MLPMixerConfig(
        hidden_size=16, num_layers=2, channels_mlp_dim=8, num_channels=2, image_size=8, num_labels=4
    ),
}


def classifier_of(config, seed=0):
    torch.manual_seed(seed)
    return AutoModelForImageClassification.from_config(config)


def batch(size=8, channels=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, channels, size, size, generator=generator), torch.arange(8) % 4


@pytest.mark.parametrize("name", SMALL)
def test_output_has_logits_and_the_mean_cross_entropy(name):
    model = classifier_of(SMALL[name]).eval()
    images, labels = batch()
    output = model(images, labels=labels)
    assert output.logits.shape == (8, 4)
    assert torch.equal(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    assert model(images).loss is None
    assert torch.equal(model(images, return_dict=False)[0], output.logits)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # 784 * 300 + 300, 300 * 100 + 100, 100 * 10 + 10
        (paper_networks.LeNetConfig(num_labels=10), 266_610),
        # stem 464; stage 1: 3 * 4,672; stage 2: 3 * 18,560 + 64 of its first block; stage 3: 222,080; classifier 650.
        # That is 269,722 of the network without parameters in its shortcuts, and 4,672 + 18,560 in two of them.
        (paper_networks.ResNetCifarConfig(num_labels=10), 292_954),
        # convolutions 1,792 + 73,856 + 295,168 + 590,080 + 1,180,160 + 3 * 2,359,808; classifier 5,130
        (paper_networks.VGGCifarConfig(num_labels=10), 9_225_610),
        # patches 48 * 128 + 128; 4 layers of 512 + (64 * 64 + 64) * 2 + 128 * 512 * 2 + 640; norm 256; classifier 1,290
        (paper_networks.MLPMixerConfig(num_labels=10), 6_272 + 4 * 140_544 + 256 + 1_290),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_default_sizes_are_those_of_the_papers(config, parameters):
    assert classifier_of(config).num_parameters() == parameters


def test_resnet_width_multiplies_every_stage():
    model = classifier_of(paper_networks.ResNetCifarConfig(width=4, num_labels=10))
    assert model.classifier.in_features == 256
    assert [stage[0].conv1.out_channels for stage in model.base_model.stages] == [64, 128, 256]
    assert model.base_model.stages[1][0].shortcut[0].kernel_size == (3, 3)


def test_width_multiplies_lenet_and_vgg_too():
    lenet = classifier_of(paper_networks.LeNetConfig(width=2, num_labels=10))
    assert [layer.out_features for layer in lenet.base_model.layers] == [600, 200]
    vgg = classifier_of(paper_networks.VGGCifarConfig(width=2, hidden_sizes=[4, 8], depths=[1, 2], num_labels=10))
    channels = [m.out_channels for m in vgg.modules() if isinstance(m, torch.nn.Conv2d)]
    assert channels == [8, 16, 16] and vgg.classifier.in_features == 16


def test_every_weight_of_a_flat_kernel_trains_on_signals_and_two_thirds_of_a_square_one_do_not():
    idle = {}
    for kernel in (3, (1, 3), [1, 5]):
        config = paper_networks.ResNetCifarConfig(
            hidden_sizes=[4, 8], depths=[1, 1], num_channels=1, num_labels=4, width=2, kernel_size=kernel
        )
        model = classifier_of(config)
        output = model(torch.randn(64, 1, 1, 40), labels=torch.arange(64) % 4)
        assert output.logits.shape == (64, 4)
        output.loss.backward()
        kernels = [module.weight for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        still = sum(int((weight.grad == 0).sum()) for weight in kernels)
        idle[str(kernel)] = still / sum(weight.numel() for weight in kernels)
        assert model.base_model.stages[1][0].conv1.out_channels == 16
    assert idle == {"3": pytest.approx(2 / 3), "(1, 3)": 0, "[1, 5]": 0}


@pytest.mark.parametrize("kernel", [2, (1, 4), (0, 3)])
def test_kernels_have_a_middle(kernel):
    with pytest.raises(ValueError, match=r"kernel_size must have odd sides; received .*Choose 3 or \(1, 3\)"):
        paper_networks.ResNetCifarConfig(kernel_size=kernel)


def test_feature_maps_have_the_papers_sizes():
    images = torch.randn(2, 3, 32, 32)
    resnet, vgg = classifier_of(paper_networks.ResNetCifarConfig()), classifier_of(paper_networks.VGGCifarConfig())
    assert resnet.base_model(images).last_hidden_state.shape == (2, 64, 8, 8)
    assert vgg.base_model(images).last_hidden_state.shape == (2, 512, 1, 1)


@pytest.mark.parametrize("size", [(1, 40), (8, 8), (28, 28)])
@pytest.mark.parametrize("name", SMALL)
def test_signals_and_small_images_are_accepted(name, size):
    kwargs = {"patch_size": (1, 4)} if name == "mlp_mixer" else {}
    model = classifier_of(type(SMALL[name])(num_channels=1, image_size=size, num_labels=3, **kwargs))
    assert model(torch.randn(2, 1, *size)).logits.shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_twenty_steps_reduce_the_loss(name):
    model = classifier_of(SMALL[name]).train()
    images, labels = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    model = classifier_of(SMALL[name])
    images, labels = batch()
    model(images, labels=labels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", SMALL)
def test_what_is_saved_is_loaded_bit_for_bit(name, tmp_path):
    model = classifier_of(SMALL[name])
    images, _ = batch()
    model(images)  # moves the batch-norm statistics away from their start
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    assert torch.equal(loaded(images).logits, model(images).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == name
    written = {"architectures", "dtype", "_name_or_path"}
    assert {k: v for k, v in config.to_dict().items() if k not in written} == {
        k: v for k, v in SMALL[name].to_dict().items() if k not in written
    }


@pytest.mark.parametrize("name", SMALL)
def test_the_trunk_loads_alone_and_holds_all_but_the_classifier(name, tmp_path):
    model = classifier_of(SMALL[name]).eval()
    model.save_pretrained(tmp_path)
    trunk = AutoModel.from_pretrained(tmp_path)
    assert type(trunk) is type(model.base_model)
    outside = {key for key in model.state_dict() if not key.startswith(f"{model.base_model_prefix}.")}
    assert outside == {"classifier.weight", "classifier.bias"}
    images, _ = batch()
    assert torch.equal(model.classifier(trunk(images).pooler_output), model(images).logits)


def test_a_new_classifier_starts_fresh_on_a_loaded_trunk(tmp_path):
    model = classifier_of(SMALL["lenet"])
    model.base_model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=7)
    assert torch.equal(loaded.lenet.layers[0].weight, model.lenet.layers[0].weight)
    assert loaded.classifier.weight.shape == (7, 10)
    assert loaded.classifier.weight.any() and not loaded.classifier.bias.any()


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_start(name):
    a, b, c = (classifier_of(SMALL[name], seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    matrices = [key for key in a if a[key].ndim > 1]
    assert matrices and not any(torch.equal(a[key], c[key]) for key in matrices)


def test_starts_are_he_normal_for_convolutions_and_glorot_normal_for_linear_layers():
    vgg = classifier_of(paper_networks.VGGCifarConfig(num_labels=10)).vgg.features[8]
    lenet = classifier_of(paper_networks.LeNetConfig(num_labels=10)).lenet.layers[0]
    assert vgg.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert lenet.weight.std().item() == pytest.approx((2 / (784 + 300)) ** 0.5, rel=0.01)
    assert not vgg.bias.any() and not lenet.bias.any()
    norm = classifier_of(SMALL["resnet_cifar"]).resnet.norm
    assert torch.equal(norm.weight, torch.ones(4)) and not norm.bias.any()


def test_gradient_accumulation_gives_the_same_step_as_one_batch(tmp_path):
    images, labels = batch()
    samples = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    after = []
    for size, steps in ((8, 1), (2, 4)):
        args = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(classifier_of(SMALL["lenet"]), args, train_dataset=samples)
        trainer.train()
        after.append(trainer.model.classifier.weight.detach().clone())
    torch.testing.assert_close(after[0], after[1])


def test_errors_state_contract_and_value():
    with pytest.raises(ValueError, match=r"depths must have one entry per stage .*; received \[3\]\. "):
        paper_networks.VGGCifarConfig(depths=[3])
    with pytest.raises(ValueError, match=r"patch_size must divide image_size 28; received 5\. "):
        paper_networks.MLPMixerConfig(image_size=28, patch_size=5)
