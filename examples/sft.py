"""Fine-tune a language model with TRL's SFTTrainer: it learns to answer a sum with its number alone.

python examples/sft.py --folder outputs/sums   # trains, saves, merges, answers
python examples/sft.py --load outputs/sums     # reads what was saved: the same logits and answers in a new process
python examples/sft.py --folder outputs/sums8 --quantise int8   # on a quantised base: pip install 'surm[quantised]'
"""

import argparse
import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TorchAoConfig, set_seed
from trl import SFTConfig, SFTTrainer

from surm import SurmConfig
from surm.data import load_task
from surm.models import MODELS, load_backbone

CUDA = torch.cuda.is_available()
BATCH = 4
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/sums"), help="where to train and save")
    parser.add_argument("--load", type=Path, metavar="FOLDER", help="a folder to read instead of training")
    parser.add_argument("--model", default="builtin_llama", help="or tiny_llama, for a test; a folder; a hub's name")
    parser.add_argument("--quantise", choices=["none", *PACKAGES], default="none", help="the weights of the base")
    parser.add_argument("--structure", default="circulant", help="which matrix")
    parser.add_argument("--steps", type=int, default=20, help=f"of {BATCH} sums each")
    options = parser.parse_args()
    package = PACKAGES.get(options.quantise)
    if package and find_spec(package) is None:
        parser.error(f"--quantise {options.quantise} needs {package}: pip install 'surm[quantised]'")
    return options


def quantisation(name: str) -> Any:
    """What transformers quantises the weights by as it reads them."""
    if name == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if name == "nf4":
        dtype = torch.bfloat16 if CUDA else torch.float32
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return None


def in_hub_layout(name: str, folder: Path) -> str | Path:
    """What `from_pretrained` reads: a model of this project is written to `folder` first."""
    if name not in MODELS:
        return name
    if not folder.is_dir():
        backbone = load_backbone(name, num_labels=0, predicts="tokens")
        backbone.tokenizer.save_pretrained(folder)
        backbone.module.save_pretrained(folder)
    return folder


def conversation(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """One example; TRL trains the completion alone."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer.strip()}],
    }


def main() -> None:
    """Train or load, then print a digest of the logits on test questions and the merged model's answers to them."""
    options = arguments()
    set_seed(0)
    folder: Path = options.load or options.folder
    name = in_hub_layout(options.model, folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")  # answers are generated behind the questions
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=torch.float32,
        device_map="cuda" if CUDA else "cpu",
        quantization_config=quantisation(options.quantise),
    )
    task = load_task("sums")

    if options.load:
        model = PeftModel.from_pretrained(base, folder)
    else:
        trainer = SFTTrainer(
            base,
            SFTConfig(
                str(folder),
                max_steps=options.steps,
                learning_rate=3e-3,
                per_device_train_batch_size=BATCH,
                gradient_checkpointing=False,  # a small model has the memory
                bf16=CUDA,
                logging_steps=5,
                save_strategy="no",
                dataloader_pin_memory=CUDA,
                disable_tqdm=True,
                report_to="none",
            ),
            train_dataset=Dataset.from_list(
                [conversation(*pair) for pair in task.train.inputs[: BATCH * options.steps]]
            ),
            processing_class=tokenizer,
            peft_config=SurmConfig(structure=options.structure, task_type="CAUSAL_LM"),
        )
        trainer.model.print_trainable_parameters()
        trainer.train()
        trainer.save_model()
        model = trainer.model

    model.eval()
    questions = [conversation(*pair)["prompt"] for pair in task.evaluation.inputs[:4]]
    inputs = tokenizer.apply_chat_template(
        questions, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    with torch.no_grad():
        logits = model(**inputs).logits.float().cpu()
    print("logits", hashlib.sha256(logits.numpy().tobytes()).hexdigest()[:16])

    merged = model.merge_and_unload(safe_merge=True)
    output = merged.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=True)
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for question, answer in zip(questions, answers, strict=True):
        print(question[0]["content"], repr(answer))


if __name__ == "__main__":
    main()
