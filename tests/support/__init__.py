"""What tests share: a scripted server on loopback."""
