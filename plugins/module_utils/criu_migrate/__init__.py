"""What the modules, the action plugins and the guards of criu.migrate share."""
