"""Looking into trained models: capture attention, measure it, attribute predictions, draw, explore."""
