"""The finder of attentions."""
