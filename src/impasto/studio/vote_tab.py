"""The tab Vote: blind pairs of images, answered by several people at once; the votes are those of `impasto votes`."""

from pathlib import Path
from typing import Any

import gradio as gr

from impasto.errors import UserError
from impasto.evaluation import votes
from impasto.report.html import Html, el
from impasto.studio.page import Studio, empty, thumbnail
from impasto.studio.queue import IMAGES

SIDE = 640  # pixels of an image that is voted on
KEYS = """<script>
document.addEventListener("keydown", (event) => {
  const id = { "1": "vote-left", "2": "vote-right", " ": "vote-tie" }[event.key];
  const field = event.target.closest("input, textarea, select, button, [contenteditable=true]");
  const button = id && !field && document.getElementById(id);
  if (!button || button.offsetParent === null || event.repeat) return;
  event.preventDefault();
  button.click();
});
</script>"""
"""1, 2 and the space bar press the buttons, unless something is being typed."""
ANSWERS = {"left": "1  left", "right": "2  right", "tie": "space  no difference"}


def vote_tab(studio: Studio, tab: gr.Tab) -> None:
    workspace, guard = studio.workspace, studio.guard
    with gr.Row():
        chosen = gr.Dropdown([], label="Vote set", elem_id="vote-set", min_width=160)
        rater = gr.Textbox(
            label="Your name", elem_id="rater", placeholder="so that votes can be told apart", min_width=160
        )
        begin = gr.Button("Begin", variant="primary", elem_id="begin", min_width=100)
    view = gr.HTML(empty("Choose a set and give your name. Which method made an image is not shown."), elem_id="pair")
    with gr.Row():
        buttons = {name: gr.Button(text, elem_id=f"vote-{name}", min_width=90) for name, text in ANSWERS.items()}
    with gr.Accordion("New vote set", open=False):
        folders = gr.Dropdown([], multiselect=True, label="Two or more folders of images of the same prompts")
        reference = gr.Dropdown([], label="Reference, shown beside each pair")
        with gr.Row():
            name = gr.Textbox(label="Name", min_width=160)
            create = gr.Button("Create", min_width=100)
    now = gr.State(None)

    def refresh(before: str | None) -> tuple[Any, Any, Any]:
        found = [one for one in workspace.folders("votes") if (workspace.root / one / votes.FILE).is_file()]
        references = [workspace.relative(file) for file in sorted((workspace.root / "references").iterdir())]
        value = before if before in found else next(iter(found), None)
        images = workspace.folders("images")
        images += [f"{one}/base" for one in images if (workspace.root / one / "base").is_dir()]
        return gr.update(choices=found, value=value), gr.update(choices=images), gr.update(choices=["", *references])

    def show(vote_set: str | None, person: str) -> tuple[Html, tuple[int, str] | None]:
        folder = workspace.existing(vote_set, "votes")
        pair = votes.next_pair(folder, person)
        total = votes.summary(folder)["pairs"] * len(votes.QUESTIONS)
        answered = sum(row["rater"] == person for row in votes.export_rows(folder))
        if pair is None:
            return empty(f"All {total} questions are answered. Thank you."), None
        question = pair.questions[0]
        images = [("left", pair.left), ("right", pair.right)]
        beside = [picture("reference", pair.reference)] if pair.reference and question == "style" else []
        progress = el("progress", value=str(answered), max=str(total), aria_label="answered")
        return el(
            "div",
            el("p", f"{answered} of {total} answered", class_="faint"),
            progress,
            el("h3", votes.QUESTIONS[question]),
            *([el("p", f"Text: {pair.prompt}")] if question == "text" else []),
            el("div", *beside, *(picture(side, file) for side, file in images), class_=f"votes n{len(beside) + 2}"),
            class_="about",
        ), (pair.id, question)

    def answer(choice: str, vote_set: str | None, person: str, shown: tuple[int, str] | None) -> tuple[Html, Any]:
        if shown is None:
            raise UserError("no pair is shown: choose a set, give your name, and press Begin")
        votes.record(workspace.existing(vote_set, "votes"), shown[0], person, shown[1], choice)
        return show(vote_set, person)

    def make(paths: list[str], image: str | None, text: str) -> None:
        if len(paths or []) < 2:
            raise UserError("votes compare folders of images: choose two or more")
        folder = workspace.new("votes", text)
        methods = [f"{one.replace('/', '-')}={workspace.relative(workspace.existing(one, 'images'))}" for one in paths]
        beside = [f"--reference={workspace.relative(workspace.existing(image, 'references'))}"] if image else []
        studio.queue.add(["votes", "create", folder, *beside, "--methods", *methods], folder, folder, IMAGES)
        gr.Info(f"{folder} is being made: open this tab again in some seconds")

    tab.select(guard(refresh), chosen, [chosen, folders, reference], show_progress="hidden")
    begin.click(guard(show), [chosen, rater], [view, now], show_progress="hidden")
    for choice, button in buttons.items():
        voted = guard(lambda *values, choice=choice: answer(choice, *values))
        button.click(voted, [chosen, rater, now], [view, now], show_progress="hidden")
    create.click(guard(make), [folders, reference, name], None, show_progress="hidden")


def picture(text: str, file: Path) -> Html:
    """An image without its name, which could say what made it."""
    source = thumbnail(file, file.stat().st_mtime_ns, SIDE)
    return el("figure", el("img", src=source, alt=text), el("figcaption", text))
