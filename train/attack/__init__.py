"""How often a trained run withstands attacks on its texts: `python -m train.attack`."""
