"""Configurations that train a part of a recogniser: which one."""

import yaml

from asrcl.adapt.parts import frozen_parts
from asrcl.adapt.training import TrainConfig
from asrcl.experiment.config import config_folder, load_config
from asrcl.experiment.run import configured_method


def test_encoder_only_leaves_linear_maps_convolutions_and_position_biases_of_the_encoder(make_model):
    content = yaml.safe_load((config_folder() / "method" / "uoe.yaml").read_text(encoding="utf-8"))
    model = make_model()
    with frozen_parts(model, content["run"]["train"]["adapt"]["freeze"]):
        free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert free and all(name.startswith("transformer.encoder.layers.") for name in free)
    kinds = {name.split(".", 4)[-1].removesuffix(".weight").removesuffix(".bias") for name in free}
    attention = {f"mha_layer.{kind}" for kind in ("in_proj_weight", "out_proj", "linear_pos", "pos_bias_u", "pos_bias_v")}
    convolution = {f"convolution_module.{kind}" for kind in ("bottleneck.0", "conv", "after_conv.2")}
    feed_forward = {f"ffn_module{number}.1.ffn.{layer}" for number in (1, 2) for layer in (0, 3)}
    assert kinds == attention | convolution | feed_forward


def test_it_is_a_method_of_the_configuration_with_a_name_of_its_own():
    config, method = configured_method(load_config(), "uoe")
    assert method.label == "Encoder only (UOE)" and "ctc_head.*" in config.settings(TrainConfig, "train", "adapt").freeze
    assert load_config().settings(TrainConfig, "train", "adapt").freeze == ()
