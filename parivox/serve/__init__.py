"""The web page of `parivox serve`.

`limits`, `access`, `sessions`, `jobs`, `levels` and `view` know nothing of Gradio; `page` lays it out and `server` runs
it. Whatever imports Gradio does so inside a function.
"""
