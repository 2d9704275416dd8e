import pytest

from metarl.networks import Network


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, "must be positive"),
        ({"std": float("nan")}, "must be positive"),
        ({"hidden": (0,)}, "widths are at least 1"),
        ({"activation": "elu"}, "activation='elu': expected one of tanh, relu"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Network(**options)
