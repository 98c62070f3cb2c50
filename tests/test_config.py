"""AsaConfig and TrainConfig: what they refuse, and the TrainingArguments of a run."""

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


@pytest.mark.parametrize("name", ["temperature", "alpha", "gradient_reversal_scale"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.5", None, True])
def test_numbers_out_of_range(name, value):
    with pytest.raises(InputError, match=f"{name} must be a finite number >= 0, but is {value!r}"):
        AsaConfig(**{name: value})


@pytest.mark.parametrize("value", ["no", 1, None])
def test_joint_pass_is_a_truth_value(value):
    with pytest.raises(InputError, match=f"joint_pass must be True or False, but is {value!r}"):
        AsaConfig(joint_pass=value)


@pytest.mark.parametrize("name", ["backend", "divergence_over", "regression_likelihood", "pay_over"])
def test_unknown_choice(name):
    with pytest.raises(InputError, match=f"{name} must be one of .*, but is 'flash'"):
        AsaConfig(**{name: "flash"})


@pytest.mark.parametrize(
    "layers, message",
    [
        ([0, -1], r"indices counted from 0, but are \[0, -1\]"),
        ([0.0], r"indices counted from 0, but are \[0.0\]"),
        ([True], r"indices counted from 0, but are \[True\]"),
        (["0"], r"indices counted from 0, but are \['0'\]"),
        ([1, 1], r"a layer is attacked once, but layers are \[1, 1\]"),
        (1, "layers must be a list of layer indices, but is 1"),
        ("01", "layers must be a list of layer indices, but is '01'"),
    ],
)
def test_layers_that_are_none(layers, message):
    with pytest.raises(InputError, match=message):
        AsaConfig(layers=layers)
