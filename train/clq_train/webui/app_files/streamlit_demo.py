"""A Streamlit application with many small components; the page /?seed=N is drawn from N."""

import random

import streamlit as st

NAMES = [
    "Region",
    "Quarter",
    "Minimum price",
    "Discount",
    "Units",
    "Growth",
    "Confidence",
    "Window",
    "Smoothing",
]
CHOICES = ["North", "South", "East", "West", "Daily", "Weekly", "Monthly", "Gross", "Net", "All"]
TITLES = ["Sales explorer", "Sensor data", "Loan calculator", "Survey results", "Energy use"]

rng = random.Random(int(st.query_params.get("seed", "0")))
st.set_page_config(layout=rng.choice(("wide", "centered")))


def component(key: int) -> None:
    name, some = rng.choice(NAMES), rng.sample(CHOICES, rng.randint(2, 5))
    kind = rng.randrange(15)
    if kind < 3:
        st.slider(name, 0, 100, rng.randint(0, 100), key=key)
    elif kind < 5:
        st.toggle(name, rng.random() < 0.5, key=key)
    elif kind == 5:
        st.radio(name, some, horizontal=rng.random() < 0.5, key=key)
    elif kind == 6:
        st.checkbox(name, rng.random() < 0.5, key=key)
    elif kind == 7:
        st.selectbox(name, some, key=key)
    elif kind == 8:
        st.multiselect(name, some, some[:2], key=key)
    elif kind == 9:
        st.text_input(name, placeholder="Type here", key=key)
    elif kind == 10:
        st.number_input(name, 0, 1000, rng.randint(0, 1000), key=key)
    elif kind == 11:
        st.button(
            rng.choice(["Run", "Reset", "Export"]),
            key=key,
            type=rng.choice(["primary", "secondary"]),
        )
    elif kind == 12:
        st.progress(rng.randint(5, 95), name)
    elif kind == 13:
        st.text_area(name, key=key)
    else:
        st.metric(name, rng.randint(10, 9999), rng.randint(-20, 20))


with st.sidebar:
    st.header("Filters")
    for i in range(rng.randint(3, 6)):
        component(100 + i)
st.title(rng.choice(TITLES))
st.write("Choose the options on the left; the charts follow.")
for number, column in enumerate(st.columns(rng.choice((1, 2, 3)))):
    with column:
        for i in range(rng.randint(3, 5)):
            component(1000 * (number + 1) + i)
draw = rng.choice((st.line_chart, st.bar_chart, st.area_chart))
draw({name: [rng.randint(0, 100) for _ in range(20)] for name in rng.sample(NAMES, 2)})
st.table([{name: rng.randint(0, 99) for name in NAMES[:4]} for _ in range(5)])
