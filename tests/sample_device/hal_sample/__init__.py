"""The sample accelerator: a card that is not there, computing in host memory."""
