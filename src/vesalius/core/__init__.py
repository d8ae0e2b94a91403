"""The vocabulary of Vesalius: geometry, cases, manifests, plans, predictions, cards, and the method contract."""
