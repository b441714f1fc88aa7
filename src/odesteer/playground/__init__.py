"""Playground: `odesteer playground`, steering in a browser.

What the page does is here without the page: `generate_pair` writes two texts side by side,
`session` is the state of one page, `library` the steerings to choose from, `controller` the
actions. `app` and `steer_tab` alone know Gradio.
"""
