"""What a trained network looks at, and what it has learned: numbers from `saliency`, `gates`, `kernels`, `layers` and
`positions`, pictures from `overlay` and `figures`.

The functions take a network, its pixel contract and uint8 photos, and give numpy arrays. `overlay` and `figures` know
nothing of networks and load no torch.
"""
