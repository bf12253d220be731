"""The controlled comparison: same classifier, same steps, and count-matched duplicated real images as the control."""
