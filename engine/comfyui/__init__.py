"""ComfyUI's protocol: HTTP for everything that counts, and a socket as a hint of how far a prompt is."""
