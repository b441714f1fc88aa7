"""Playground: `odesteer playground`, steering in a browser.

What the page does is here without the page: `writing` makes two texts grow side by side,
`setting` is what a person chose, `shelf` what there is to choose from, `acts` what they can do.
`server`, `page` and the tabs alone know Gradio.
"""
