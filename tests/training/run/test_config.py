"""Test that settings can be read back exactly, and that a wrong one is named."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import ConfigError
from training.run.config import RANGES, TrainConfig, differences, from_mapping, parse_setting, to_mapping

NUMBERS = {field.name: type(field.default) for field in dataclasses.fields(TrainConfig) if field.name in RANGES}


def number(name: str) -> st.SearchStrategy:
    low, high = RANGES[name]
    return st.integers(int(low), int(high)) if NUMBERS[name] is int else st.floats(low, high)


@given(st.fixed_dictionaries({}, optional={name: number(name) for name in NUMBERS}))
def test_settings_can_be_read_back_exactly(values):
    config = TrainConfig(**values)
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config


def test_every_number_has_a_range():
    numbers = {f.name for f in dataclasses.fields(TrainConfig) if type(f.default) in (int, float)}
    assert numbers == set(RANGES)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_settings_out_of_range_are_reported(name):
    for wrong in (RANGES[name][0] - 1, RANGES[name][1] * 2 + 1, math.nan):
        with pytest.raises(ConfigError, match=rf"^{name}: "):
            TrainConfig(**{name: wrong})


def test_an_unknown_setting_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"^ema_deacy: unknown setting, did you mean ema_decay"):
        from_mapping({"ema_deacy": 0.9})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 2.5),
        ("epochs", True),
        ("epochs", "3"),
        ("model", 3),
        ("position", 1),
        ("split_fractions", [0.5, 0.5]),
    ],
)
def test_settings_of_the_wrong_type_are_reported(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}: "):
        from_mapping({name: value})


def test_integers_are_accepted_as_floats():
    assert from_mapping({"dropout": 0}) == TrainConfig(dropout=0.0)


def test_validation_and_test_may_be_empty_but_training_may_not():
    TrainConfig(split_fractions=(1.0, 0.0, 0.0))
    with pytest.raises(ConfigError, match="split_fractions"):
        TrainConfig(split_fractions=(0.0, 0.5, 0.5))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("ema_decay=0.99", ("ema_decay", 0.99)),
        ("compile=true", ("compile", True)),
        ("model=resnet18", ("model", "resnet18")),
        ("split_fractions=[0.5, 0.25, 0.25]", ("split_fractions", [0.5, 0.25, 0.25])),
    ],
)
def test_settings_of_the_command_line(text, parsed):
    assert parse_setting(text) == parsed


def test_a_setting_without_a_value_is_rejected():
    with pytest.raises(ConfigError, match="name=value"):
        parse_setting("compile")


def test_differences_name_both_values():
    assert differences(TrainConfig(seed=1), TrainConfig(seed=2)) == ["seed: 1 there, 2 here"]
    assert differences(TrainConfig(), TrainConfig()) == []
