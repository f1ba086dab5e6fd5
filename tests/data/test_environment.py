import pytest

from ssl_pretrain.cli.preprocess_unlabeled import main
from ssl_pretrain.data.environment import check_environment
from ssl_pretrain.training.prepare import default_workers


@pytest.mark.parametrize(
    ("variable", "value", "fewest"),
    [
        ("nnUNet_n_proc_DA", "", 0),
        ("nnUNet_n_proc_DA", "abc", 0),
        ("nnUNet_n_proc_DA", "-1", 0),
        ("nnUNet_n_proc_DA", "2.5", 0),
        ("nnUNet_def_n_proc", "", 1),
        ("nnUNet_def_n_proc", "0", 1),
    ],
)
def test_a_number_of_processes_that_is_none_is_named_with_its_variable(monkeypatch, capsys, variable, value, fewest):
    monkeypatch.setenv(variable, value)
    message = f"The environment variable {variable} is {value!r}; it must be a number of processes from {fewest} on."
    with pytest.raises(ValueError, match=message):
        check_environment()
    assert main(["-i", "raw", "-d", "7", "-c", "3d_fullres"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("value", "workers"), [("0", 0), (" 1 ", 1)])
def test_a_number_is_taken_as_it_is(monkeypatch, value, workers):
    monkeypatch.setenv("nnUNet_n_proc_DA", value)
    monkeypatch.delenv("nnUNet_def_n_proc", raising=False)
    check_environment()
    assert default_workers() == workers
