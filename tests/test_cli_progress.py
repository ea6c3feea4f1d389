"""Progress without a terminal: lines, not a bar that shows at the end."""

from impasto.cli import console
from impasto.progress import part


def test_progress_without_a_terminal_writes_a_line_every_ten_seconds_and_the_last(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress_bar() as update:
        update("loading mini-sd15")
        now[0] += 7.0
        update("encoding images", 1, 2)
        for step in range(1, 41):
            now[0] += 1.0
            update("training", step, 40, f"loss {1 / step:.3f}")
    assert capsys.readouterr().err.splitlines() == [
        "loading mini-sd15",
        "training 3/40, loss 0.333, 37 s left",
        "training 13/40, loss 0.077, 27 s left",
        "training 23/40, loss 0.043, 17 s left",
        "training 33/40, loss 0.030, 7 s left",
        "training 40/40, loss 0.025",
    ]


def test_progress_is_silent_in_other_processes(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with console.progress_bar() as update:
        update("training", 1, 1)
    assert capsys.readouterr().err == ""


def test_part_counts_as_a_share_of_the_whole():
    seen = []
    part(lambda *at: seen.append(at), 2, 5)("generating", 3, 28, "image 1 of 2")
    part(lambda *at: seen.append(at), 0, 5)("loading")
    assert seen == [("generating", 59, 140, "image 1 of 2"), ("loading", 0, None, "")]
