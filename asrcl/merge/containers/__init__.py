"""Checkpoints of every toolkit, read and written tensor by tensor without importing one.

    from asrcl.merge.containers import open_checkpoint
    with open_checkpoint("exp/valid.acc.ave.pth") as checkpoint, checkpoint.writer("exp/half.pth") as writer:
        for name in checkpoint.outlines:
            writer.write(name, checkpoint.read(name) / 2)

| Toolkit | What is opened | What is put back on writing |
|---|---|---|
| any | `.safetensors` | string metadata |
| Hugging Face | folder of `save_pretrained`, also in shards or `pytorch_model.bin` | config, tokenizer, other files; the shards |
| SpeechBrain | `CKPT+...` folder | `CKPT.yaml`, optimizer, counters |
| ESPnet, WeNet | `.pth`, `.pt`: a plain state dict, or under `model` | all other keys |
| icefall | `.pt` with `model` | all other keys but `model_avg`, which would not belong to the new weights |
| Lightning | `.ckpt` with `state_dict`, `model.` before every name | all other keys |
| NeMo | `.nemo` | configuration, tokenizer, order and compression |

`module.` (DataParallel, DDP) and `_orig_mod.` (torch.compile) are taken off where every name has them, and put back.
"""

from asrcl.merge.containers.checkpoint import Checkpoint, Writer
from asrcl.merge.containers.opening import Source, load_state, open_checkpoint
from asrcl.merge.containers.outline import Origin, Outline

__all__ = ["Checkpoint", "Origin", "Outline", "Source", "Writer", "load_state", "open_checkpoint"]
