"""Names of layers beside charts: short enough, and one label for one layer only."""

import pytest

from asrcl.scoring.report.html import charts
from asrcl.scoring.report.html.labels import short_paths

ENCODER = (
    "mha_layer.in_proj_weight", "mha_layer.linear_pos.weight", "mha_layer.out_proj.weight", "mha_layer.pos_bias_u",
    "convolution_module.layer_norm", "convolution_module.bottleneck.0.weight", "convolution_module.conv.weight",
    "convolution_module.after_conv.0", "convolution_module.after_conv.2.weight", "ffn_module1.0", "ffn_module1.1.ffn.0.weight",
    "ffn_module1.1.ffn.3.weight", "ffn_module2.0", "ffn_module2.1.ffn.0.weight", "ffn_module2.1.ffn.3.weight", "norm1.norm",
)  # fmt: skip
ATTENTION = ("in_proj_weight[0:96]", "in_proj_weight[96:192]", "in_proj_weight[192:288]", "out_proj.weight", "in_proj_bias")
DECODER = (
    *(f"{kind}.att.{part}" for kind in ("self_attn", "multihead_attn") for part in ATTENTION),
    "pos_ffn.ffn.0.weight", "pos_ffn.ffn.3.weight", "norm1.norm", "norm2.norm",
)  # fmt: skip
CONFORMER = [
    "transformer.custom_src_module.layers.0.w.weight", "transformer.custom_tgt_module.layers.0.emb.Embedding.weight",
    *(f"transformer.encoder.layers.{n}.{name}" for n in range(12) for name in ENCODER), "transformer.encoder.norm.norm",
    *(f"transformer.decoder.layers.{n}.{name}" for n in range(6) for name in DECODER), "transformer.decoder.norm.norm",
    "ctc_head.w.weight", "attention_head.w.weight",
]  # fmt: skip
"""What SpeechBrain calls the parameters of its Conformer, with the rows of the blocks of a curvature."""


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.b.w", "a.b.v"], ["a.b.w", "a.b.v"]),
        (["only.one.that.is.longer.than.it.may.be"], ["only.o.t.i.l.t.i.m.be"]),
        (["net.encoder.layers.10.weight", "net.decoder.layers.0.weight", "net.head"],
         ["encoder.layers.10", "decoder.layers.0", "net.head"]),
        (["net.encoder.layers.10.block.ffn.3", "net.decoder.embed_tokens", "head"],
         ["encoder.10.block.ffn.3", "decoder.embed_tokens", "head"]),
        (["encoder.layers.0.convolution_module.after_conv.2", "x"], ["encoder.0.cm.ac.2", "x"]),
        (["encoder.layers.0.ffn_module1.1.linear_weight", "x"], ["encoder.…linear_weight", "x"]),
        (["encoder.layers.0.self_attn.in_proj_weight[96:192]", "x"], ["encoder.0.sa.…[96:192]", "x"]),
        (["one_part_that_is_longer_than_it_may_be"], ["one_part…han_it_may_be"]),
    ],
)  # fmt: skip
def test_paths_are_shortened(paths: list[str], expected: list[str]) -> None:
    assert short_paths(paths, 22) == expected


def test_the_layers_of_a_conformer_fit_and_stay_apart() -> None:
    found = dict(zip(CONFORMER, short_paths(CONFORMER, charts.NAME_LETTERS), strict=True))
    assert len(set(found.values())) == len(CONFORMER) and max(map(len, found.values())) <= charts.NAME_LETTERS
    assert not any("·" in label for label in found.values())
    decoder = "transformer.decoder.layers.0"
    assert found[f"{decoder}.self_attn.att.in_proj_weight[96:192]"] == "decoder.0.sa.a.…ht[96:192]"
    assert found[f"{decoder}.multihead_attn.att.in_proj_weight[96:192]"] == "decoder.0.ma.a.…ht[96:192]"
    assert found[f"{decoder}.self_attn.att.out_proj.weight"] == "decoder.0.sa.att.out_proj"
    assert found["transformer.encoder.layers.11.ffn_module2.1.ffn.3.weight"] == "encoder.11.fm2.1.ffn.3"


def test_names_that_differ_in_a_long_middle_stay_apart() -> None:
    paths = [f"model.{side}.layers.{n}.self_attention_block.projection.{part}" for side in ("encoder", "decoder")
             for n in range(12) for part in ("query", "key", "value")]  # fmt: skip
    found = short_paths(paths, charts.NAME_LETTERS)
    assert len(set(found)) == len(paths) and max(map(len, found)) <= charts.NAME_LETTERS


def test_labels_that_are_alike_are_numbered_and_short_names_keep_theirs() -> None:
    paths = [f"net.{side}.0.{name}.projection" for side in "ab" for name in ("self_attn", "source_attn", "side_adapter")]
    found = short_paths([*paths, paths[1], "b.0.sa.projection"], 17)
    assert found[:3] == ["a.0.sa.projection", "a.0.sa.projecti·2", "a.0.sa.projecti·3"] and found[6] == found[1]
    assert found[3:6] == ["b.0.sa.projecti·2", "b.0.sa.projecti·3", "b.0.sa.projecti·4"] and found[7] == "b.0.sa.projection"
