"""Progress without a terminal: lines, not a bar that shows at the end."""

import io

from impasto.cli import console


def test_bar_without_a_terminal_writes_a_line_every_ten_seconds_and_the_last(monkeypatch):
    now, out = [100.0], io.StringIO()
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console.sys, "stderr", out)
    with console.bar("training", 40) as update:
        for step in range(1, 41):
            now[0] += 1.0
            update(step, f"loss {1 / step:.3f}")
    lines = out.getvalue().splitlines()
    assert lines == [
        "training 10/40, loss 0.100, 30 s left",
        "training 20/40, loss 0.050, 20 s left",
        "training 30/40, loss 0.033, 10 s left",
        "training 40/40, loss 0.025",
    ]


def test_bar_is_silent_in_other_processes(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(console.sys, "stderr", out)
    monkeypatch.setenv("RANK", "1")
    with console.bar("training", 1) as update:
        update(1)
    assert out.getvalue() == ""
