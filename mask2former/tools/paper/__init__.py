"""Tables of the papers: published figures, costs that are kept, and the page that shows them."""
