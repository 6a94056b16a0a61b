"""The method itself: numpy, torch, torchvision, scikit-learn; no Flower, Ray or Hydra."""
