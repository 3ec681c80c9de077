"""Publishing: a checkpoint folder gets its card and goes to the Hub in one commit."""
