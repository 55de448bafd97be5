"""How a mask passes through each operation: one rule an operation.

The table of the rules, and of what is refused, stands in the family's README.md; a test compares it
with :mod:`robustcore.masking.rules.table`.

Parallel branches are inputs of which none is computed from another (SqueezeNet's Fire, Inception);
a concatenation with an own ancestor is DenseNet's and U-Net's. ceil_mode applies to the mask as to
the image. BatchNorm in training mode is refused when the model is called: its statistics would mix
what is hidden with what is not.

Source of the rules for conv, BatchNorm, activations, pools, means, residual add and concatenation:
Balasubramanian and Feizi, "Towards improved input masking for convolutional neural networks", 2023.
The others are ours, made so that nothing hidden is read and a mask of ones changes no bit.
"""
