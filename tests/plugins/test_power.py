"""How samples of nvidia-smi are read and summed up."""

from plugins.check import power

LOG = [
    "2026/11/28 23:00:00.000, 1980, 500.25, 0x0000000000000000\n",
    "2026/11/28 23:00:00.020, 1500, 720.00, 0x0000000000000004\n",
    "2026/11/28 23:00:00.040, 1400, 700.00, 0x0000000000000004\n",
    "2026/11/28 23:00:00.060, 13",
]


def test_a_cut_line_is_no_sample() -> None:
    """nvidia-smi is stopped in the middle of a line; what it said before counts."""
    samples = power.parse(LOG)
    assert [sample.clock for sample in samples] == [1980, 1500, 1400]
    assert [sample.reasons for sample in samples] == [0, 4, 4]


def test_a_summary_has_medians_extremes_and_shares() -> None:
    """Clocks a call are its time by the median clock; reasons that never held are left out."""
    line = power.describe(70.0, power.parse(LOG))
    assert "power median 700 W, max 720 W" in line
    assert "clock median 1500 MHz, min 1400 MHz, 105.0 thousand clocks" in line
    assert "held back by power cap 67%, 3 samples" in line
