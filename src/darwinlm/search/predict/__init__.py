"""Prediction of losses from gradients, curvature and measured losses."""
