"""The real engines that containers are tested on."""
