"""How the embedded federation (`dataset=emoji`) and its models (`model=tiny`, `model=tiny_vit`) were made; see README.md."""
