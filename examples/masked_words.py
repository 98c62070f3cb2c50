"""Masked-language-model training under attack: `wrap` and `AsaTrainer` around what Hugging Face gives.

python examples/masked_words.py [a text file] [a masked language model]
"""

import sys

from datasets import load_dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    TrainingArguments,
)

from asa_mini import AsaConfig, wrap
from asa_mini.train.trainer import AsaTrainer


def main(file: str = "texts.txt", name: str = "bert-base-uncased", output: str = "run", **training):
    tokenizer = AutoTokenizer.from_pretrained(name)
    wrapped = wrap(AutoModelForMaskedLM.from_pretrained(name), AsaConfig(divergence_over="real_tokens"))
    texts = load_dataset("text", data_files=file, split="train").filter(lambda row: row["text"].strip())
    rows = texts.map(
        lambda row: tokenizer(row["text"], truncation=True, max_length=128), remove_columns="text"
    )
    trainer = AsaTrainer(
        model=wrapped,
        args=TrainingArguments(output, learning_rate=5e-5, save_strategy="no", report_to="none", **training),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer),
        adversary_learning_rate=1e-4,
    )
    trainer.train()
    wrapped.unwrap().save_pretrained(output)  # loads anywhere, without asa_mini
    print(trainer.terms[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
