"""One run: found or claimed, trained, evaluated, recorded, tracked; may import `shared` to `config`."""
