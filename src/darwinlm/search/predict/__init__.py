"""What an allocation would lose, predicted from gradients, curvature and measured losses."""
