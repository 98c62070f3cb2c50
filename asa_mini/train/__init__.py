"""Fine-tuning: data, models, the trainer, a run and its folder, evaluation, and what ASA is compared with."""
