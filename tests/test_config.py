"""TrainConfig: what it refuses, and the TrainingArguments that it gives."""

import pytest

from asa_mini import AsaConfig
from asa_mini.errors import InputError
from asa_mini.train.config import TrainConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training": {"learning_rate": 0.1}}, "`training` cannot set learning_rate"),
        ({"training": {"output_dir": "x"}}, "`training` cannot set output_dir"),
        ({"method": "freelb"}, "unknown method 'freelb'; choose one of asa, rdrop, naive"),
        ({"asa": {"temperature": 0.3}}, "asa must be an AsaConfig"),
        ({"seed": True}, "seed must be an integer"),
        ({"per_device_train_batch_size": 2.5}, "per_device_train_batch_size must be an integer"),
        ({"learning_rate": True}, "learning_rate must be a finite number > 0"),
        ({"strength": float("nan")}, "strength must be a number from 0 to 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**options)


def test_training_arguments_of_a_run(tmp_path):
    config = TrainConfig(seed=3, training={"logging_steps": 7, "weight_decay": 0.0})
    arguments = config.training_arguments(str(tmp_path))
    assert (arguments.seed, arguments.learning_rate, arguments.num_train_epochs) == (3, 2e-5, 3.0)
    assert (arguments.logging_steps, arguments.weight_decay) == (7, 0.0), "what is asked for wins"
    assert TrainConfig().training_arguments(str(tmp_path)).logging_steps == 10
    assert arguments.report_to == [] and arguments.train_sampling_strategy == "group_by_length"
    with pytest.raises(InputError, match=r"TrainingArguments refuses these options: .*nonsense"):
        TrainConfig(training={"eval_strategy": "nonsense"}).training_arguments(str(tmp_path))
    with pytest.raises(InputError, match=r"refuses these options: .* argument 'weight_dekay'"):
        TrainConfig(training={"weight_dekay": 0.1}).training_arguments(str(tmp_path))
    with pytest.raises(InputError, match="report_to: nonsense is unknown or not installed"):
        TrainConfig(training={"report_to": "nonsense"}).training_arguments(str(tmp_path))


def test_rdrop_is_asa_without_a_mask():
    asa = AsaConfig(alpha=0.5, layers=[1])
    assert TrainConfig("rdrop", asa).asa_config() == AsaConfig(alpha=0.5, layers=())
    assert TrainConfig("asa", asa).asa_config() is asa
