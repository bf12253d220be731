"""Progress as bars: a moving one for a stage without a count, one per count, and notes above them."""

import pytest

from medlt.progress import Bars


def shown(bars: Bars) -> dict[str, float | None]:
    """The bars on the terminal, with their totals."""
    return {task.description: task.total for task in bars._bars.tasks}


def test_a_stage_has_a_moving_bar_until_it_ends_or_counts() -> None:
    with Bars() as bars:
        with bars.stage("loading libraries"):
            assert shown(bars) == {"loading libraries": None}
        assert shown(bars) == {}
        with bars.stage("codec"):
            bars("codec", 3, 8)
            bars("images", 1, 2)
        assert shown(bars) == {"codec": 8, "images": 2}


@pytest.mark.parametrize("details", [False, True])
def test_an_error_is_printed_and_the_other_ends_only_with_details(
    capsys: pytest.CaptureFixture[str], details: bool
) -> None:
    def work() -> None:
        with Bars(details) as bars:
            with bars.stage("data"):
                bars.note("estimate: about 3 min")
            with bars.stage("codec"):
                raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        work()
    err = capsys.readouterr().err
    assert "estimate: about 3 min" in err
    assert "codec: stopped by an error" in err
    assert ("data: finished" in err) == details
