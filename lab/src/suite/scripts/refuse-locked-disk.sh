on_console 'disk is mine'
before=$(sum disk)
refused 'another program has it open' --kernel "$LINUX" --disk path=disk,format=raw
want 'sum of the image' "$(sum disk)" "$before"
ctl quit
