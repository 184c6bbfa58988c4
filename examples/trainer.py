"""Fine-tune the built-in text model with the Trainer of transformers: is a word good or bad?

python examples/trainer.py --folder outputs/words   # trains; goes on where it stopped
python examples/trainer.py --load outputs/words     # reads what was saved: the same predictions in a new process
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from surm import SurmConfig
from surm.data import load_task
from surm.data.encode import encode
from surm.models import load_backbone


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("outputs/words"),
        help="where to train and save, going on if there is a checkpoint",
    )
    parser.add_argument("--load", type=Path, metavar="FOLDER", help="a folder to read instead of training")
    parser.add_argument("--model", default="builtin_bert", help="or tiny_bert, for a test")
    parser.add_argument("--structure", default="circulant", help="which matrix")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training words")
    parser.add_argument("--fraction", type=float, default=0.5, help="share of the training words")
    return parser.parse_args()


def main() -> None:
    """Train or load, then print the accuracy on the test words and a digest of the logits."""
    options = arguments()
    set_seed(0)  # of the new head and the update
    backbone = load_backbone(options.model, num_labels=2)
    # The best epoch is chosen on a slice of the training words, so that the test words are looked at once.
    task = load_task("valence", evaluate_on="selection", fraction=options.fraction)
    train, selection = encode(task.train, backbone), encode(task.evaluation, backbone)
    test = encode(load_task("valence").evaluation, backbone)

    folder: Path = options.load or options.folder
    if options.load:
        model = PeftModel.from_pretrained(backbone.module, folder)
    else:
        # As with LoraConfig: SEQ_CLS also trains and saves the head.
        model = get_peft_model(backbone.module, SurmConfig(structure=options.structure, task_type="SEQ_CLS"))
        model.print_trainable_parameters()
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder),
            num_train_epochs=options.epochs,
            learning_rate=3e-3,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=512,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            report_to="none",
        ),
        data_collator=train.collate,
        train_dataset=train,
        eval_dataset=selection,
        compute_metrics=accuracy,
    )
    if not options.load:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
        trainer.save_model()
    result = trainer.predict(test)
    digest = hashlib.sha256(result.predictions.tobytes()).hexdigest()
    print(f"accuracy {result.metrics['test_accuracy']:.4f} on {len(test)} words, logits {digest[:16]}")


if __name__ == "__main__":
    main()
