"""ODESteer and the estimators that it rests on."""
