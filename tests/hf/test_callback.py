"""Training with the callback is training without it, then a merge by hand."""

import re

import pytest
import torch

from asrcl.curvature import EstimateOptions, estimate
from asrcl.curvature.blocks import DiagonalBlock
from asrcl.curvature.factors import DiagonalFactor
from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, load_state, merge

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="Transformers' Trainer needs accelerate")

from asrcl.hf import AdaptationCallback  # noqa: E402
from asrcl.hf.callback import batch_loss  # noqa: E402

torch.set_num_threads(1)


def make_model():
    """With dropout, so that training draws random numbers."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=40, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=20, max_target_positions=12,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, dropout=0.1, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 8
    return model


def make_data(seed, count=12):
    generator = torch.Generator().manual_seed(seed)
    lengths = [3 + n % 4 for n in range(count)]
    labels = [torch.randint(3, 40, (length,), generator=generator) for length in lengths]
    return [{"input_features": torch.randn(8, 40, generator=generator), "labels": row} for row in labels]


def collate(rows):
    labels = torch.nn.utils.rnn.pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100)
    return {"input_features": torch.stack([row["input_features"] for row in rows]), "labels": labels}


OLD, NEW = make_data(0), make_data(1)


@pytest.fixture
def trainer(tmp_path):
    """Makes a trainer: (model, **settings), with arguments of the Seq2SeqTrainer itself in `own`."""

    def make(model=None, own=(), **settings):
        plain = {
            "output_dir": str(tmp_path / "out"), "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
            "use_cpu": True, "learning_rate": 5e-3, "num_train_epochs": 2, "remove_unused_columns": False,
            "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        }  # fmt: skip
        args = transformers.Seq2SeqTrainingArguments(**(plain | settings))
        given = {"model": model or make_model(), "args": args, "data_collator": collate, "train_dataset": NEW}
        return transformers.Seq2SeqTrainer(**(given | dict(own)))

    return make


def trained(trainer, *callback, **options):
    """The weights after training with the callback, and the callback."""
    keeping = AdaptationCallback(trainer, *callback, **options)
    trainer.add_callback(keeping)
    trainer.train()
    return load_state(trainer.model), keeping


def old_curvature(trainer, model, **options):
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    chosen = EstimateOptions(max_items=128, exclude=tuple(frozen), **options)
    return estimate(model, batch_loss, trainer.get_eval_dataloader(OLD), chosen)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


SETTINGS = [{}, {"gradient_accumulation_steps": 2, "warmup_steps": 2}]
METHODS = [("ihr", {"damping": 1.0, "rest": 0.0}), ("laplace", {}), ("average", {}), ("interpolate", {"strength": 0.3})]


@pytest.mark.parametrize("method, options", METHODS)
@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "accumulated"])
def test_training_with_the_callback_is_training_without_it_and_a_merge(settings, method, options, trainer):
    plain = trainer(**settings)
    plain.train()
    start = make_model()
    curvature = {"curvature": old_curvature(plain, start)} if method in ("ihr", "laplace") else {}
    wanted = merge(start, plain.model, method, **curvature, **options)
    found, _ = trained(trainer(**settings), OLD, method=method, keep={"old": OLD}, **options)
    assert same(found, wanted) and not same(found, load_state(plain.model))
    assert torch.equal(found["proj_out.weight"], found["model.decoder.embed_tokens.weight"])


def test_a_recogniser_by_ctc_and_the_plain_trainer(tmp_path):
    """wav2vec 2.0 draws masks by NumPy while it trains; nothing of the callback may draw there."""

    def make():
        torch.manual_seed(0)
        config = transformers.Wav2Vec2Config(
            vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
            conv_stride=(5, 4), conv_kernel=(8, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2, mask_time_prob=0.4, mask_time_length=2, ctc_loss_reduction="mean",
            layerdrop=0.0, pad_token_id=0,
        )  # fmt: skip
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
            learning_rate=5e-3, per_device_train_batch_size=4, per_device_eval_batch_size=4, num_train_epochs=2, seed=3,
        )  # fmt: skip
        model = transformers.Wav2Vec2ForCTC(config)
        return transformers.Trainer(model, args, data_collator=waves, train_dataset=data[8:])

    def waves(rows):
        return {name: torch.stack([row[name] for row in rows]) for name in ("input_values", "labels")}

    generator = torch.Generator().manual_seed(5)
    rows = [(torch.randn(600, generator=generator), torch.randint(1, 12, (4,), generator=generator)) for _ in range(16)]
    data = [{"input_values": values, "labels": labels} for values, labels in rows]
    plain, start = make(), make().model
    plain.train()
    curvature = estimate(start, batch_loss, plain.get_eval_dataloader(data[:8]), max_items=128)
    wanted = merge(start, plain.model, "ihr", curvature=curvature)
    found, keeping = trained(make(), data[:8], keep={"old": data[:8]})
    assert same(found, wanted) and keeping.figures["merged"]["old", "loss"] > 0


def test_mixed_precision(trainer):
    plain = trainer(bf16=True)
    plain.train()
    found, keeping = trained(trainer(bf16=True), OLD, keep={"old": OLD})
    new, start = load_state(plain.model), make_model().state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    wanted = merge(start, new, "ihr", curvature=keeping.curvature)
    assert same(found, wanted), "trained as without the callback"


def test_options_of_the_estimate_and_of_the_merge(trainer):
    plain = trainer()
    plain.train()
    start = make_model()
    spec = MergeSpec("ihr", {"tau": 0.5}, rest=0.2)
    wanted = merge(start, plain.model, spec, curvature=old_curvature(plain, start, layers="linear", fisher="mc"))
    options = EstimateOptions(max_items=128, layers="linear", fisher="mc")
    found, _ = trained(trainer(), OLD, method=spec, options=options)
    assert same(found, wanted)


def test_a_loss_and_batches_of_the_users_own(trainer):
    def loss_fn(model, batch):
        return 2 * model(**batch).loss

    def batches(trainer):
        return torch.utils.data.DataLoader(OLD[:8], batch_size=4, collate_fn=collate)

    plain = trainer()
    plain.train()
    start = make_model()
    curvature = estimate(start, loss_fn, batches(plain), exclude=("model.encoder.embed_positions.weight",))
    wanted = merge(start, plain.model, "laplace", curvature=curvature)
    found, _ = trained(trainer(), batches(plain), loss_fn=loss_fn, method="laplace")
    assert same(found, wanted)


def test_the_best_checkpoint_is_what_is_merged(trainer):
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 3}
    one = trainer(own={"eval_dataset": OLD}, **best)  # the loss on other data grows: the first epoch is the best
    found, _ = trained(one, OLD)
    assert one.state.best_model_checkpoint.endswith("checkpoint-3") and one.state.global_step == 9
    start = make_model()
    best = transformers.WhisperForConditionalGeneration.from_pretrained(one.state.best_model_checkpoint)
    assert same(found, merge(start, best, "ihr", curvature=old_curvature(one, start)))


def test_what_is_measured(trainer, capsys):
    _, keeping = trained(trainer(num_train_epochs=8), OLD, keep={"old": OLD, "new": NEW})
    losses = {stage: {domain: rows[domain, "loss"] for domain in ("old", "new")} for stage, rows in keeping.figures.items()}
    assert losses["fine-tuned"]["new"] < losses["before"]["new"] and losses["fine-tuned"]["old"] > losses["before"]["old"]
    assert losses["merged"]["old"] < losses["fine-tuned"]["old"]
    predicted = [keeping.figures[stage]["old data", "predicted increase of the loss"] for stage in ("fine-tuned", "merged")]
    assert 0 < predicted[1] < predicted[0]
    _, title, shown = capsys.readouterr().out.partition("merged with the model before training by ihr")
    assert title and f"{losses['merged']['old']:.4g}" in shown
    assert "runtime" not in shown and "per_second" not in shown


def test_metrics_of_generated_text(trainer):
    def wrong(prediction):
        return {"wrong": float((prediction.predictions[:, 1:2] != prediction.label_ids[:, :1]).mean())}

    one = trainer(own={"compute_metrics": wrong}, predict_with_generate=True, num_train_epochs=1)
    _, keeping = trained(one, OLD, keep={"old": OLD[:4]})
    assert all(0 <= keeping.figures[stage]["old", "wrong"] <= 1 for stage in ("before", "fine-tuned", "merged"))


def test_a_function_measures(trainer):
    def norm(model):
        assert not torch.is_inference_mode_enabled()
        return {"norm": float(model.model.decoder.layer_norm.weight.detach().norm())}

    found, keeping = trained(trainer(), OLD, keep=norm)
    assert keeping.figures["before"]["norm", ""] == pytest.approx(4.0)
    assert keeping.figures["merged"]["norm", ""] == float(found["model.decoder.layer_norm.weight"].norm())


def test_parts_that_are_not_trained_stay(trainer):
    model = make_model()
    model.freeze_encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, keeping = trained(trainer(model), OLD)
    assert all(torch.equal(found[name], before[name]) for name in found if "encoder." in name)
    assert not torch.equal(found["model.decoder.layers.0.fc1.weight"], before["model.decoder.layers.0.fc1.weight"])
    assert not any("encoder." in name for name in keeping.curvature.names())


def test_methods_that_weigh_both_sides(trainer):
    plain = trainer()
    plain.train()
    start = make_model()
    new = estimate(plain.model, batch_loss, plain.get_eval_dataloader(NEW), max_items=128,
                   exclude=("model.encoder.embed_positions.weight",))  # fmt: skip
    wanted = merge(start, plain.model, "regmean", curvature=old_curvature(plain, start), new_curvature=new)
    found, _ = trained(trainer(), OLD, method="regmean")
    assert same(found, wanted)


def test_a_curvature_file_is_written_and_read_again(trainer, tmp_path):
    first, _ = trained(trainer(), OLD, curvature=tmp_path / "curvature.safetensors")
    again, _ = trained(trainer(), curvature=tmp_path / "curvature.safetensors")
    assert same(first, again)


def test_training_that_goes_on_from_a_checkpoint(trainer, tmp_path):
    saved = {"save_strategy": "epoch", "num_train_epochs": 2}
    trained(trainer(**saved), OLD, curvature=tmp_path / "curvature.safetensors")
    again = trainer(**saved)
    again.add_callback(AdaptationCallback(again, OLD))
    checkpoint = str(tmp_path / "out" / "checkpoint-3")
    with pytest.raises(InputError, match=r"goes on from step 3.*old=FOLDER"):
        again.train(resume_from_checkpoint=checkpoint)
    make_model().save_pretrained(tmp_path / "old")
    again = trainer(**saved)
    again.add_callback(AdaptationCallback(again, curvature=tmp_path / "curvature.safetensors", old=tmp_path / "old"))
    again.train(resume_from_checkpoint=checkpoint)
    plain = trainer(**saved)
    plain.train(resume_from_checkpoint=checkpoint)
    wanted = merge(make_model(), plain.model, "ihr", curvature=tmp_path / "curvature.safetensors")
    assert same(load_state(again.model), wanted) and not same(load_state(plain.model), wanted)


def test_a_curvature_of_other_weights_is_refused(trainer, tmp_path):
    trained(trainer(), OLD, curvature=tmp_path / "curvature.safetensors")
    other = make_model()
    torch.nn.init.normal_(other.model.decoder.layers[0].fc1.weight)
    with pytest.raises(InputError, match=r"curvature\.safetensors: estimated at other weights"):
        trained(trainer(other), curvature=tmp_path / "curvature.safetensors")


@pytest.mark.parametrize(
    "mark, message",
    [
        ({"peft_config": {}}, "WhisperForConditionalGeneration: holds an adapter of PEFT"),
        ({"_hf_peft_config_loaded": True}, "holds an adapter of PEFT"),
        ({"is_quantized": True}, "is quantised"),
    ],
)
def test_models_that_cannot_be_merged_in_place(mark, message, trainer):
    one = trainer()
    for name, value in mark.items():
        setattr(one.model, name, value)
    with pytest.raises(InputError, match=message):
        AdaptationCallback(one, OLD)


def test_wrong_options(trainer, tmp_path):
    one = trainer()
    with pytest.raises(InputError, match="no merge method 'magic'"):
        AdaptationCallback(one, OLD, method="magic")
    with pytest.raises(InputError, match="method=ihr needs the curvature of old data, and no curvature is given"):
        AdaptationCallback(one)
    with pytest.raises(InputError, match=r"c\.safetensors is not there"):
        AdaptationCallback(one, curvature=tmp_path / "c.safetensors")
    with pytest.raises(InputError, match="no option dampign"):
        AdaptationCallback(one, OLD, dampign=1.0)


def test_what_has_no_curvature_is_named(trainer, caplog):
    model = make_model()
    model.extra = torch.nn.Linear(3, 2)  # trained by nobody
    trained(trainer(model), OLD)
    assert "no curvature of extra.weight, extra.bias: the loss does not depend on it" in caplog.text
    assert "embed_positions" not in caplog.text, "not trained, and not looked for"
    trained(trainer(), OLD, options=EstimateOptions(layers="linear"))
    assert re.search(r"no curvature of (model\.\S+ ){4}and \d+ more: layers='linear'", caplog.text)


@pytest.mark.parametrize("layers", ["all", "linear"])
def test_a_large_vocabulary_never_has_a_matrix_of_its_size_squared(layers, trainer):
    """Whisper's embedding is its output layer too: 51,864 rows."""
    options = EstimateOptions(layers=layers, largest_factor=30)
    _, keeping = trained(trainer(), OLD, options=options)
    (block,) = keeping.curvature.blocks_of("proj_out.weight").values()
    assert max(tensor.numel() for tensor in block.tensors().values()) <= max(40 * 16, 16 * 16)
    assert isinstance(block, DiagonalBlock) if layers == "all" else isinstance(block.row_factor, DiagonalFactor)
