"""What frozen features tell, by what is trained on them or lies nearest to them, and the monitor during training."""
