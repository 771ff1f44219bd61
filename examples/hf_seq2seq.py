"""Fine-tune a Whisper with Transformers' own Seq2SeqTrainer and keep what it knew: five lines more than without.

    python examples/hf_seq2seq.py                    # a tiny random model on random features, to see every step; no download
    python examples/hf_seq2seq.py --model openai/whisper-tiny.en --old general.csv --new orders.csv --keep held_out.csv

A table has the columns `path` (of audio at 16 kHz, relative to the table) and `text`. Needs
`pip install transformers accelerate`, and soundfile for audio.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, WhisperConfig, WhisperForConditionalGeneration

from asrcl.hf import AdaptationCallback


def make_model():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=40, num_mel_bins=8, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=20, max_target_positions=12,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config)


def make_data(seed, count=32):
    """Features and labels of a made-up domain: what is said follows from the features, and is told otherwise in every domain."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 40, (10, 6), generator=generator)
    sounds = torch.randn(10, 8, 40, generator=generator)
    return [{"input_features": sounds[n % 10], "labels": words[n % 10, : 3 + n % 4].tolist()} for n in range(count)]


def read_data(table, processor):
    import soundfile

    rows = []
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            audio, rate = soundfile.read(Path(table).parent / row["path"], dtype="float32")
            features = processor(audio, sampling_rate=rate, return_tensors="pt").input_features[0]
            rows.append({"input_features": features, "labels": processor.tokenizer(row["text"]).input_ids[1:]})
    return rows


def collate(rows):
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(r["labels"]) for r in rows], batch_first=True, padding_value=-100)
    return {"input_features": torch.stack([r["input_features"] for r in rows]), "labels": labels}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a folder of Hugging Face, or a name of the Hub; needs --old, --new and --keep")
    parser.add_argument("--old", help="table of the domain that the model knows")
    parser.add_argument("--new", help="table of the domain to learn")
    parser.add_argument("--keep", help="table of the domain to keep, to measure")
    parser.add_argument("--out", help="where the merged model goes")
    given = parser.parse_args()
    out = given.out or tempfile.mkdtemp()
    settings = {"output_dir": out, "report_to": "none", "save_strategy": "no", "remove_unused_columns": False}
    if given.model:
        from transformers import WhisperProcessor

        processor = WhisperProcessor.from_pretrained(given.model)
        model = WhisperForConditionalGeneration.from_pretrained(given.model)
        old, new, keep = (read_data(table, processor) for table in (given.old, given.new, given.keep))
        settings |= {"learning_rate": 1e-5, "num_train_epochs": 3, "per_device_train_batch_size": 8}
    else:
        model, old, new, keep = make_model(), make_data(0), make_data(1), make_data(0)
        settings |= {"learning_rate": 3e-3, "per_device_train_batch_size": 8, "disable_tqdm": True}
        learner = Seq2SeqTrainer(model, Seq2SeqTrainingArguments(**settings, num_train_epochs=30), collate, train_dataset=old)
        learner.train()  # a model that knows the old domain
        settings |= {"num_train_epochs": 10}

    args = Seq2SeqTrainingArguments(**settings)
    trainer = Seq2SeqTrainer(model, args, collate, train_dataset=new)
    keeping = AdaptationCallback(trainer, old, keep={"old": keep, "new": new}, damping=1.0)  # with the import and the next,
    trainer.add_callback(keeping)  # all that keeping needs
    trainer.train()
    trainer.save_model(out)  # the merged model
    print(f"merged: {out}")


if __name__ == "__main__":
    main()
