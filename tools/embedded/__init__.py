"""How the embedded federation (`dataset=emoji`) and its models (`tiny`, `tiny_vit`)
were made; see README.md."""
