"""A Gradio application with many small components; the page ?seed=N is drawn from N."""

import random
import sys

import gradio as gr

NAMES = [
    "Temperature",
    "Top p",
    "Strength",
    "Width",
    "Seed",
    "Volume",
    "Threshold",
    "Batch size",
    "Steps",
    "Guidance",
]
CHOICES = [
    "Fast",
    "Balanced",
    "Accurate",
    "English",
    "German",
    "Japanese",
    "Red",
    "Green",
    "Blue",
    "Small",
    "Large",
]
TITLES = ["Image captions", "Speech to text", "Translation", "Summaries", "Image editor", "Chat"]


def component(rng: random.Random) -> None:
    name, some = rng.choice(NAMES), rng.sample(CHOICES, rng.randint(2, 5))
    kind = rng.randrange(12)
    if kind < 3:
        gr.Slider(0, 100, value=rng.randint(0, 100), label=name)
    elif kind == 3:
        gr.Radio(some, value=some[0], label=name)
    elif kind == 4:
        gr.CheckboxGroup(some, value=some[:1], label=name)
    elif kind == 5:
        gr.Checkbox(value=rng.random() < 0.5, label=name)
    elif kind == 6:
        gr.Dropdown(some, value=some[0], label=name)
    elif kind == 7:
        gr.Textbox(label=name, placeholder="Type here", lines=rng.randint(1, 4))
    elif kind == 8:
        gr.Number(value=rng.randint(0, 999), label=name)
    elif kind == 9:
        gr.Button(
            rng.choice(["Run", "Clear", "Stop", "Share"]),
            variant=rng.choice(["primary", "secondary", "stop"]),
        )
    elif kind == 10:
        gr.Image(label=name, height=160)
    else:
        gr.Dataframe(headers=some, value=[[rng.randint(0, 99) for _ in some] for _ in range(4)])


def demo(seed: int) -> gr.Blocks:
    rng = random.Random(seed)
    with gr.Blocks(title="demo") as blocks:
        gr.Markdown(f"# {rng.choice(TITLES)}\nUpload a file or type a text, then press the button.")
        if rng.random() < 0.5:
            with gr.Tabs():
                for name in rng.sample(TITLES, 3):
                    with gr.Tab(name):
                        component(rng)
        with gr.Row():
            for _ in range(rng.choice((1, 2, 2, 3))):
                with gr.Column():
                    for _ in range(rng.randint(3, 6)):
                        component(rng)
        with gr.Row():
            gr.Button("Submit", variant="primary")
            gr.Button("Clear")
        with gr.Accordion("Advanced settings", open=rng.random() < 0.6):
            component(rng)
            component(rng)
    return blocks


def main() -> None:
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()
    for seed in range(40):
        app = gr.mount_gradio_app(app, demo(seed), path=f"/{seed}")
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")


main()
