"""Whole models as users have them: every parameter has a block or a reason, and the diagonal is exact.

The truth is the squared gradient of one item at a time, by autograd, for every parameter.
"""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asrcl.curvature import KroneckerBlock, estimate

ITEMS = 3


class Case:
    """A model, a batch as keyword arguments, a loss per item, and how many parameters of which kind are expected."""

    def __init__(self, model, batch, loss, kinds, by_item=()):
        self.model, self.batch, self.loss = model.double().eval().requires_grad_(True), batch, loss
        self.kinds, self.by_item = kinds, by_item

    def mean_loss(self, model, batch):
        return self.loss(model, batch).mean()

    def batches(self, size):
        split = {name: value.split(size) for name, value in self.batch.items()}
        return [{name: parts[i] for name, parts in split.items()} for i in range(ITEMS // size)]


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def tokens(high, *shape):
    return torch.randint(high, shape)


def per_item(logits, labels):
    """Cross entropy summed over the positions of an item."""
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return losses.reshape(len(labels), -1).sum(1)


def conformer(subsampling):
    speech = pytest.importorskip("asrcl.speech.model")
    model = speech.ConformerASR(
        8, 9, width=8, heads=2, encoder_layers=2, decoder_layers=1, feed_forward=12, kernel=3, subsampling=subsampling
    )
    model.transformer.positional_encoding.emb_dtype = torch.float64
    batch = {"x": drawn(ITEMS, 33, 8), "tokens": tokens(9, ITEMS, 4)}

    def loss(model, batch):
        lengths = torch.full((len(batch["x"]),), 33)
        ctc, _, attention = model.logits(batch["x"], lengths, batch["tokens"])
        frames = ctc.log_softmax(-1).square().sum((1, 2))
        return frames + per_item(attention, batch["tokens"])

    # 9 maps in an encoder block (query, key and value are one parameter), 6 in a decoder block; input, tokens, two heads.
    maps = 2 * 9 + 6 + 4 + (2 if subsampling == "conv2d" else 0)
    return Case(model, batch, loss, {"kronecker": maps, "dense": 2})


def transformer_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 4))
    batch = {"x": drawn(ITEMS, 6, 5), "labels": tokens(4, ITEMS, 6)}
    return Case(model, batch, lambda m, b: per_item(m(b["x"]), b["labels"]), {"kronecker": 2 + 2 * 4})


def resnet():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    batch = {"x": drawn(ITEMS, 3, 32, 32), "labels": tokens(4, ITEMS)}
    return Case(model, batch, lambda m, b: per_item(m(b["x"]), b["labels"]), {"kronecker": 1 + 8 + 3 + 1})


def whisper():
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        vocab_size=17, num_mel_bins=8, d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, max_source_positions=10, max_target_positions=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    batch = {"x": drawn(ITEMS, 8, 20), "labels": tokens(17, ITEMS, 5)}

    def loss(model, batch):
        output = model(input_features=batch["x"], decoder_input_ids=batch["labels"])
        return per_item(output.logits, batch["labels"].roll(1, dims=1))

    # Convolutions, 6 maps per encoder layer, 10 per decoder layer, two tables of positions. The table of tokens is also the
    # output layer, which leaves the sum of two diagonals.
    return Case(model, batch, loss, {"kronecker": 2 + 2 * 6 + 2 * 10 + 2})


def wav2vec2():
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, conv_dim=(8, 8),
        conv_stride=(3, 2), conv_kernel=(5, 3), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config)
    batch = {"x": drawn(ITEMS, 60), "labels": tokens(9, ITEMS, 9)}
    parametrised = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original"

    def loss(model, batch):
        logits = model(input_values=batch["x"]).logits
        return per_item(logits, batch["labels"][:, : logits.shape[1]])

    kinds = {"kronecker": 2 + 1 + 2 * 6 + 1}
    return Case(model, batch, loss, kinds, (f"{parametrised}0", f"{parametrised}1"))


def recurrent():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(5, 6, batch_first=True, bidirectional=True), nn.Linear(12, 4)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    model = Tagger()
    batch = {"x": drawn(ITEMS, 7, 5), "labels": tokens(4, ITEMS, 7)}
    names = [f"rnn.{name}" for name, _ in model.rnn.named_parameters()]
    return Case(model, batch, lambda m, b: per_item(m(b["x"]), b["labels"]), {"kronecker": 1}, names)


MODELS = {
    "Conformer, stacked frames": lambda: conformer("stack"),
    "Conformer, convolutions": lambda: conformer("conv2d"),
    "nn.TransformerEncoder": transformer_encoder,
    "ResNet": resnet,
    "Whisper": whisper,
    "wav2vec 2.0": wav2vec2,
    "LSTM": recurrent,
}


@pytest.fixture(params=MODELS, scope="module")
def case(request):
    torch.manual_seed(0)
    with SpeechBrainDoubles():
        yield MODELS[request.param]()


class SpeechBrainDoubles:
    """SpeechBrain asks for single precision in softmax; here double precision stays."""

    def __enter__(self):
        self.softmax = F.softmax

        def same_precision(tensor, dim=None, dtype=None, **rest):
            return self.softmax(tensor, dim=dim, dtype=None if tensor.dtype == torch.float64 else dtype, **rest)

        F.softmax = same_precision

    def __exit__(self, *_):
        F.softmax = self.softmax


@pytest.fixture(scope="module")
def truth(case):
    """Name -> mean over items of the squared gradient."""
    squares = {}
    for item in case.batches(1):
        case.model.zero_grad()
        case.mean_loss(case.model, item).backward()
        for name, parameter in case.model.named_parameters():
            if parameter.grad is not None:
                squares[name] = squares.get(name, 0) + parameter.grad.square() / ITEMS
    case.model.zero_grad()
    return squares


@pytest.mark.parametrize("size", [1, ITEMS])
def test_diagonal_is_exact_for_every_parameter(case, truth, size):
    diagonals = estimate(case.model, case.mean_loss, case.batches(size), structure="diagonal").diagonals()
    shared = {name for name in truth if size > 1 and "linear_pos" in name}  # one table for the whole batch, see docs
    assert set(diagonals) == set(truth)
    for name, found in diagonals.items():
        if name not in shared:
            torch.testing.assert_close(found.reshape(truth[name].shape), truth[name], rtol=1e-6, atol=1e-10, msg=name)


def test_every_parameter_has_a_block_or_a_reason(case, truth):
    curvature = estimate(case.model, case.mean_loss, case.batches(ITEMS))
    rows = {}
    for row in curvature.report():
        rows.setdefault(row.name.split("[")[0], []).append(row)
    assert set(rows) == {name for name, _ in case.model.named_parameters()}
    assert all(row.note for name in rows for row in rows[name] if row.kind == "none")
    assert {name for name, found in rows.items() if found[0].kind == "none"} == set(rows) - set(truth)
    assert set(curvature.metadata["notes"]) == set(case.by_item)
    kinds = Counter(found[0].kind for found in rows.values())
    assert {kind: kinds[kind] for kind in case.kinds} == case.kinds


def test_exact_blocks_are_exact(case, truth):
    """All that is not a Kronecker product agrees with the truth in the same estimation."""
    curvature = estimate(case.model, case.mean_loss, case.batches(1))
    kronecker = {key.name for key, block in curvature.blocks.items() if isinstance(block, KroneckerBlock)}
    tied = {"proj_out.weight", "model.decoder.embed_tokens.weight"}
    for name, found in curvature.diagonals().items():
        if name not in kronecker | tied:
            torch.testing.assert_close(found.reshape(truth[name].shape), truth[name], rtol=1e-6, atol=1e-10, msg=name)
